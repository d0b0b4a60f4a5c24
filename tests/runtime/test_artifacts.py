"""Artifacts on disk: what a kill, another process or `--fresh` leaves, and what is made of it."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.backbones.embeddings import PartialEmbeddings
from stages.data.episodes import Dataset
from stages.runtime import artifacts, logs, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput
from stages.runtime.loop import Metrics
from tests.data.synthetic import make_dataset, start


def make(path: Path, value: float = 0.0, config: dict[str, float] | None = None) -> Artifact:
    tensors = {"model": {"weight": torch.full((3,), value)}}
    return artifacts.save(path, "pretrain", tensors, domain="walker", config=config or {"lr": 0.1}, seed=0)


def flip(file: Path, place: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


# ---------------------------------------------------------------------------- reading


def test_a_flipped_bit_is_seen_before_the_tensors_are_used(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    assert torch.equal(made.tensors("model")["weight"], torch.zeros(3))
    flip(made.path / "model.safetensors")
    with pytest.raises(BadInput, match=r"model.safetensors is missing or corrupted \(checksum differs"):
        artifacts.load(made.path).tensors("model")
    with pytest.raises(BadInput, match="not listed"):
        made.tensors("other")


def test_an_artifact_without_seal_is_checked_by_its_id(tmp_path: Path) -> None:
    """Those written before there were seals stay readable, and their content stays protected."""
    file = make(tmp_path / "a").path / "artifact.json"
    meta = json.loads(file.read_text())
    del meta["seal"]
    file.write_text(json.dumps(meta))
    assert artifacts.load(tmp_path / "a").id == meta["id"]
    meta["config"]["lr"] = 0.2
    file.write_text(json.dumps(meta))
    with pytest.raises(BadInput, match="edited or damaged"):
        artifacts.load(tmp_path / "a")


def test_facts_that_json_changes_still_verify(tmp_path: Path) -> None:
    extra = {"scores": {10: 0.5, 9: 0.25}, "shape": (1, 2), "bad": float("nan"), "where": Path("x")}
    made = artifacts.save(tmp_path / "a", "x", {}, domain="walker", config={}, seed=0, extra=extra)
    artifacts.verify(artifacts.load(made.path))
    assert made.meta["extra"]["scores"] == {"10": 0.5, "9": 0.25}


# ---------------------------------------------------------------------------- kills between two renames


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    made.path.rename(tmp_path / ".a.old")
    assert artifacts.load(made.path).id == made.id and made.path.exists()


def test_a_reader_does_not_put_back_what_a_writer_is_replacing(tmp_path: Path) -> None:
    """Between its two renames the writer still holds the lock: the old artifact must not get in its way."""
    make(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".a.old")
    code = """
        import sys
        from pathlib import Path
        from stages.runtime import storage
        with storage.locked(Path(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.read()
    """
    writer = start(code, tmp_path / "a", stdin=subprocess.PIPE)
    assert writer.stdout and writer.stdin and writer.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match="is not an artifact"):
        artifacts.load(tmp_path / "a")
    assert (tmp_path / ".a.old").exists()
    writer.stdin.close()
    writer.wait(timeout=60)
    assert artifacts.load(tmp_path / "a").meta["seed"] == 0


def test_the_writer_itself_puts_back_the_old_one(tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".a.old")
    with storage.locked(tmp_path / "a"):
        assert artifacts.reuse(tmp_path / "a", "pretrain", {"lr": 0.1}, 0, [], fresh=False) is not None


# ---------------------------------------------------------------------------- --fresh


def test_a_rebuild_that_was_stopped_is_not_taken_for_finished(tmp_path: Path) -> None:
    path = tmp_path / "a"
    made = make(path)
    wanted = ("pretrain", {"lr": 0.1}, 0, ())
    assert artifacts.reuse(path, *wanted, fresh=False)
    assert artifacts.reuse(path, *wanted, fresh=True) is None  # ... and here the rebuild is killed
    assert artifacts.load(path).id == made.id, "others still read the old one"
    assert artifacts.reuse(path, *wanted, fresh=False) is None
    make(path, 1.0)
    assert artifacts.reuse(path, *wanted, fresh=False)


# ---------------------------------------------------------------------------- logs


def test_a_log_survives_damage_and_is_replaced_whole(tmp_path: Path) -> None:
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.write(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\xff\n[]\n{"loss": 1}\n{"step": 3, "loss": null}\n')
        file.write(b'{"step": 4, "l": 1}\n{"st')
    assert [row["step"] for row in logs.read_log(tmp_path / "metrics.jsonl")] == [1, 4]
    metrics = Metrics(tmp_path, start_step=4)
    metrics.log(4, {"loss": 0.5})
    metrics.close()
    assert [row["step"] for row in logs.read_log(tmp_path / "metrics.jsonl")] == [1, 4]
    assert not list(tmp_path.glob(".*.tmp"))


# ---------------------------------------------------------------------------- embeddings that wait


def test_embedded_rows_that_changed_are_made_again(tmp_path: Path) -> None:
    dataset = Dataset.open([make_dataset(tmp_path / "data").path], "walker")

    def partial() -> PartialEmbeddings:
        return PartialEmbeddings(tmp_path / "embeddings", dataset, 3, {"backbone": "x"})

    first = partial()
    for length in dataset.episode_length[:2]:
        first.append(np.full((length, 3), 0.5, np.float32))
    first.save()
    assert partial().episodes == 2
    file = tmp_path / "embeddings.partial" / "rows.f16"
    assert file.stat().st_blocks * 512 >= file.stat().st_size, "the disk must have room for all rows from the start"
    flip(file, 5)
    assert partial().episodes == 0
    (tmp_path / "embeddings.partial" / "progress.json").write_text("[" * 10_000)
    assert partial().episodes == 0


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ENOMEM, errno.EACCES])
def test_embedded_rows_that_cannot_be_read_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A map or a file that the environment refuses is no reason to embed all of it again."""
    dataset = Dataset.open([make_dataset(tmp_path / "data").path], "walker")

    def partial() -> PartialEmbeddings:
        return PartialEmbeddings(tmp_path / "embeddings", dataset, 3, {"backbone": "x"})

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    first = partial()
    first.append(np.full((dataset.episode_length[0], 3), 0.5, np.float32))
    first.save()
    for module, name, file in ((mmap, "mmap", "rows.f16"), (Path, "read_text", "progress.json")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse)
            with pytest.raises(BadInput, match=f"{file} cannot be read: ") as caught:
                partial()
        assert "corrupted" not in str(caught.value) and "delete" not in str(caught.value)
        assert partial().episodes == 1


def test_renewing_allows_for_inputs_made_again_and_nothing_else(tmp_path: Path) -> None:
    about: dict[str, Any] = {"domain": "walker", "seed": 0}
    data = artifacts.save(tmp_path / "data", "collect", {"a": {"x": torch.zeros(1)}}, config={}, **about)
    path = tmp_path / "model"
    artifacts.save(path, "pretrain", {"a": {"x": torch.zeros(1)}}, config={"lr": 1}, inputs=[data], **about)
    os.utime(path / "artifact.json", (1, 1))
    assert artifacts.reuse(path, "pretrain", {"lr": 1}, 0, [data], fresh=False, renew=True)
    assert (path / "artifact.json").stat().st_mtime > (data.path / "artifact.json").stat().st_mtime  # for make
    again = artifacts.save(tmp_path / "data", "collect", {"a": {"x": torch.ones(1)}}, config={}, **about)
    assert artifacts.reuse(path, "pretrain", {"lr": 1}, 0, [again], fresh=False, renew=True) is None
    for config, inputs in (({"lr": 2}, [again]), ({"lr": 1}, [])):
        with pytest.raises(BadInput, match="--fresh"):
            artifacts.reuse(path, "pretrain", config, 0, inputs, fresh=False, renew=True)
    with pytest.raises(BadInput, match="--fresh"):
        artifacts.reuse(path, "pretrain", {"lr": 1}, 0, [again], fresh=False)
