"""Several processes: the same weights as one, and all stop together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.runtime.distributed import LAUNCHED, World, is_first_process, launched, require_one_process, world
from stages.runtime.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


def of_torchrun(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {**told, **changed}.items():
        monkeypatch.setenv(name, value)


def test_a_rank_that_torchrun_did_not_set_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launched() == (0, 1) and is_first_process()
    require_one_process("collect")
    of_torchrun(monkeypatch)
    assert launched() == (1, 2) and not is_first_process()
    of_torchrun(monkeypatch, RANK="first")
    with pytest.raises(BadInput, match="unset them, or start with torchrun"):
        launched()


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    with world("cpu") as place:
        assert place == World(0, 1, torch.device("cpu")) and place.is_main
        place.barrier()
        assert place.any(True) and not place.any(False)
        assert place.stops_at(3, True) and not place.stops_at(3, False)
        assert not torch.distributed.is_initialized()


def test_what_works_in_one_process_refuses_several(monkeypatch: pytest.MonkeyPatch) -> None:
    of_torchrun(monkeypatch)
    with pytest.raises(BadInput, match="collect works in one process: start it without torchrun"):
        require_one_process("collect")


def test_two_processes_reach_the_weights_of_one(tmp_path: Path) -> None:
    """torchrun with gloo, 20 joint updates on halves of the global batch, against one process on the whole."""
    from tests.runtime.ddp_worker import train

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, str(ROOT / "tests/runtime/ddp_worker.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    ranks = [load_file(str(tmp_path / f"rank-{rank}.safetensors")) for rank in (0, 1)]
    for name, value in ranks[0].items():
        assert torch.equal(ranks[1][name], value), f"{name} differs between the processes"
    assert ranks[0]["told"].tolist() == [True, False]
    # rank 1 is asked to leave after step 2: both leave after step 3, the first that both can know of
    assert [rank["stops"].tolist() for rank in ranks] == [[False, False, False, True]] * 2

    model, norms = train(World(0, 1, torch.device("cpu")))
    torch.testing.assert_close(ranks[0]["norms"], norms, rtol=1e-3, atol=1e-4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ranks[0][name], value, rtol=0, atol=1e-4, msg=name)
