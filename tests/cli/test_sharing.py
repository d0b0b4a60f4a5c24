"""Push and pull by the hub's own client against a local fake of its HTTP API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitagent_cli.sharing import repository
from stages.runtime import artifacts
from stages.runtime.errors import BadInput
from tests.cli.fake_hub import FakeHub, running
from tests.stages import small_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running() as served:
        yield served


def bitagent(hub_url: str, home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: the client reads its environment once, when it is imported."""
    mine = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    away = {"HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"}
    environment = {k: v for k, v in os.environ.items() if k not in away} | mine
    command = [sys.executable, "-m", "bitagent_cli", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


def test_what_is_pushed_comes_back_the_same(hub: FakeHub, tmp_path: Path) -> None:
    run = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_inputs(run)
    data = run.root / "data" / "random"
    sent = bitagent(hub.url, tmp_path, "push", data, "hub:me/walker")
    assert sent.returncode == 0, sent.stderr
    assert "pushed to hub:me/walker" in sent.stdout
    card = hub.repositories["me/walker"]["README.md"].decode()
    assert artifacts.load(data).id in card and "bitagent pull hub:me/walker --out runs/walker" in card
    fetched = bitagent(hub.url, tmp_path, "pull", "hub:me/walker", "--out", tmp_path / "pulled")
    assert fetched.returncode == 0, fetched.stderr
    assert artifacts.load(tmp_path / "pulled" / "data" / "random").id == artifacts.load(data).id
    assert {p.name for p in (tmp_path / "pulled").iterdir()} == {"README.md", "data"}
    again = bitagent(hub.url, tmp_path, "pull", "hub:me/walker", "--out", tmp_path / "pulled")
    assert again.returncode == 2 and "is not empty" in again.stderr

    # what was changed on the way is refused, and nothing is left
    files = hub.repositories["me/walker"]
    shard = next(name for name in files if name.endswith(".safetensors"))
    files[shard] = files[shard][:-1] + b"\x07"
    spoilt = bitagent(hub.url, tmp_path, "pull", "hub:me/walker", "--out", tmp_path / "spoilt")
    assert spoilt.returncode == 2 and "checksum differs" in spoilt.stderr and not (tmp_path / "spoilt").exists()
    assert not list(tmp_path.glob(".spoilt*"))


def test_embeddings_bring_their_backbone(hub: FakeHub, tmp_path: Path) -> None:
    run = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_inputs(run)
    sent = bitagent(hub.url, tmp_path, "push", run.root / "embeddings" / "offline" / "random", "hub:me/e", "--private")
    assert sent.returncode == 0, sent.stderr
    metas = [json.loads(b) for p, b in hub.repositories["me/e"].items() if p.endswith("artifact.json")]
    assert sorted(meta["stage"] for meta in metas) == ["backbone", "embed"]


def test_a_hub_that_says_no_is_one_sentence(hub: FakeHub, tmp_path: Path) -> None:
    for change, words in (({}, "does not exist"), ({"refuse": 401}, "log in"), ({"refuse": 500}, "try again later")):
        for name, value in change.items():
            setattr(hub, name, value)
        result = bitagent(hub.url, tmp_path, "pull", "hub:me/none", "--out", tmp_path / "out")
        assert result.returncode == 2 and result.stderr.startswith("error: "), result.stderr
        assert words in result.stderr and result.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    away = bitagent("http://127.0.0.1:9", tmp_path, "pull", "hub:me/none", "--out", tmp_path / "out")
    assert away.returncode == 2 and "cannot be reached" in away.stderr


@pytest.mark.parametrize("target", ["me/walker", "hub:walker", "hub:me/", "hub:a/b/c"])
def test_a_target_is_a_repository(target: str) -> None:
    with pytest.raises(BadInput, match="give hub:user/name"):
        repository(target)
