"""The dataset writer and reader: order, durability, resumption, gathers, refusals."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from stages.data import episodes as room
from stages.data.episodes import Dataset, write_sidecar
from stages.data.shards import read_header
from stages.runtime.errors import BadInput
from tests.data.synthetic import (
    ACTIONS,
    SIZE,
    STATES,
    assert_same,
    make_dataset,
    make_episode,
    make_run,
    make_writer,
    start,
)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three episodes a shard."""
    monkeypatch.setattr(room, "SHARD_BYTES", 6000)


def shard_bytes(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}


# ---------------------------------------------------------------------------- writing


def test_episodes_come_back_in_the_order_of_their_numbers(tmp_path: Path, small_shards: None) -> None:
    writer = make_writer(tmp_path / "data")
    for number in (3, 0, 4, 1, 2):
        writer.append(number, make_episode(number, 12 + number))
    assert writer.numbers() == [0, 1, 2, 3, 4] and writer.frames() == 70
    artifact = writer.finish()
    dataset = Dataset.open([tmp_path / "data"], "walker")
    for number in range(5):
        assert_same(dataset.episode(number), make_episode(number, 12 + number))
    assert len(dataset.shards) > 1
    assert artifact.meta["extra"]["frames"] == 70
    wanted = [float(make_episode(n, 12 + n).reward.sum(dtype=np.float64)) for n in range(5)]
    np.testing.assert_allclose(artifact.meta["extra"]["returns"], wanted, atol=1e-6)
    assert not (tmp_path / "data.partial").exists()


def test_the_same_episodes_give_the_same_bytes(tmp_path: Path, small_shards: None) -> None:
    one = make_dataset(tmp_path / "one" / "data", (20, 12, 31, 9))
    writer = make_writer(tmp_path / "two" / "data")
    for number, rows in reversed(list(enumerate((20, 12, 31, 9)))):
        make_writer(tmp_path / "two" / "data").append(number, make_episode(number, rows))  # as another worker would
    two = writer.finish()
    assert shard_bytes(one.path) == shard_bytes(two.path) and one.id == two.id


def test_shards_are_plain_safetensors_of_bounded_size(tmp_path: Path, small_shards: None) -> None:
    artifact = make_dataset(tmp_path / "data", [20] * 7)
    for file in artifact.path.glob("shard-*.safetensors"):
        arrays = load_file(file)
        assert sum(a.nbytes for a in arrays.values()) <= room.SHARD_BYTES
        assert arrays["image"].shape == (len(arrays["reward"]), 3, SIZE, SIZE)
        assert arrays["episode_start"].tolist() == list(range(0, len(arrays["reward"]) + 1, 20))
        assert read_header(file)["image"].offset % 4096 == 0


def test_an_episode_larger_than_a_shard_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SHARD_BYTES", 10)
    assert len(shard_bytes(make_dataset(tmp_path / "data", (5, 6, 7)).path)) == 3


def test_sigkill_loses_only_the_episode_in_flight(tmp_path: Path, small_shards: None) -> None:
    code = """
        import sys
        from pathlib import Path
        from tests.data.synthetic import make_episode, make_writer
        writer = make_writer(Path(sys.argv[1]))
        for number in range(100_000):
            if not writer.has(number):
                writer.append(number, make_episode(number))
            print(number, flush=True)
    """
    path, safe = tmp_path / "killed", -1
    for lines in (3, 5):
        child = start(code, path)
        assert child.stdout is not None
        for _ in range(lines + safe + 1):
            last = int(child.stdout.readline())
        child.kill()
        rest = child.stdout.read().split()
        assert child.wait() == -signal.SIGKILL
        safe = int(rest[-1]) if rest else last
        writer = make_writer(path)
        for number in range(safe + 1):
            assert_same(writer.read(number), make_episode(number))
        assert writer.numbers() in (list(range(safe + 1)), list(range(safe + 2)))
    for number in range(safe + 3):
        if not writer.has(number):
            writer.append(number, make_episode(number))
    assert shard_bytes(writer.finish(safe + 3).path) == shard_bytes(
        make_dataset(tmp_path / "whole", [20] * (safe + 3)).path
    )


def test_sigkill_inside_a_write_leaves_no_half_episode(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from stages.data import episodes
        from tests.data.synthetic import make_episode, make_writer
        writer = make_writer(Path(sys.argv[1]))
        writer.append(0, make_episode(0))
        def half(file, blocks, sealed):
            file.write_bytes(bytes(100))
            os.kill(os.getpid(), signal.SIGKILL)
        episodes.write_shard = half
        writer.append(1, make_episode(1))
    """
    child = start(code, tmp_path / "data")
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    writer = make_writer(tmp_path / "data")
    assert writer.numbers() == [0] and not writer.has(1)
    writer.append(1, make_episode(1))
    assert shard_bytes(writer.finish().path) == shard_bytes(make_dataset(tmp_path / "whole", (20, 20)).path)


def test_sigkill_while_merging_loses_nothing(tmp_path: Path, small_shards: None) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from stages.data import episodes
        from tests.data.synthetic import make_dataset
        episodes.SHARD_BYTES = 6000
        written = episodes.write_shard
        def write(file, blocks, sealed=False):
            if file.name == "shard-00001.safetensors":
                os.kill(os.getpid(), signal.SIGKILL)
            written(file, blocks, sealed)
        episodes.write_shard = write
        make_dataset(Path(sys.argv[1]), [20] * 6)
    """
    child = start(code, tmp_path / "killed")
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    again = make_writer(tmp_path / "killed").finish()
    assert shard_bytes(again.path) == shard_bytes(make_dataset(tmp_path / "whole", [20] * 6).path)


def test_a_partial_folder_of_another_config_is_refused_or_dropped(tmp_path: Path) -> None:
    make_writer(tmp_path / "data").append(0, make_episode(0))
    assert make_writer(tmp_path / "data").has(0)
    for change in ({"config": {"noise": 0.5}}, {"seed": 1}, {"renderer": "gl"}, {"camera": 1}):
        with pytest.raises(BadInput, match="--fresh"):
            make_writer(tmp_path / "data", **change)
    assert not make_writer(tmp_path / "data", seed=1, fresh=True).has(0)


def test_finish_refuses_gaps_and_nothing(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "data")
    with pytest.raises(BadInput, match="not one episode"):
        writer.finish()
    writer.append(0, make_episode(0))
    writer.append(2, make_episode(2))
    with pytest.raises(ValueError, match="episode 1"):
        writer.finish()
    artifact = writer.finish([0, 2])
    assert_same(Dataset.open([artifact.path], "walker").episode(1), make_episode(2))


def test_finish_refuses_episodes_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard_size in (10, 10**6):  # in two shards, in one
        monkeypatch.setattr(room, "SHARD_BYTES", shard_size)
        writer = make_writer(tmp_path / "data", fresh=True)
        other = make_episode(1)
        other.action = other.action[:, :2]
        writer.append(0, make_episode(0))
        writer.append(1, other)
        with pytest.raises(BadInput, match="do not match"):
            writer.finish()
        assert not (tmp_path / "data").exists()


WRONG: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "float frames": ("image", lambda x: x.astype(np.float32)),
    "frames last": ("image", lambda x: x.transpose(0, 2, 3, 1)),
    "no frames": ("image", lambda x: None),
    "smaller frames": ("image", lambda x: x[:, :, :2, :2]),
    "short action": ("action", lambda x: x[1:]),
    "flat action": ("action", lambda x: x[:, 0]),
    "wide reward": ("reward", lambda x: x[:, None]),
    "nan reward": ("reward", lambda x: np.where(x == x[3], np.nan, x)),
    "infinite state": ("state", lambda x: x / 0.0),
    "two starts": ("is_first", lambda x: np.ones_like(x)),
    "no start": ("is_first", lambda x: np.zeros_like(x)),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_wrong_arrays_are_refused(tmp_path: Path, name: str) -> None:
    field, change = WRONG[name]
    episode = make_episode(0)
    setattr(episode, field, change(getattr(episode, field)))
    writer = make_writer(tmp_path / "data")
    with pytest.raises(ValueError):
        writer.append(0, episode)
    assert writer.numbers() == []


# ---------------------------------------------------------------------------- reading


@pytest.fixture
def two_parts(tmp_path: Path, small_shards: None) -> Dataset:
    make_dataset(tmp_path / "random", (20, 12, 31))
    make_dataset(tmp_path / "expert", (14, 25), first=3, source="expert", task="walk")
    return Dataset.open([tmp_path / "random", tmp_path / "expert"], "walker")


LENGTHS = (20, 12, 31, 14, 25)


def whole(name: str) -> np.ndarray:
    return np.concatenate([getattr(make_episode(n, rows), name) for n, rows in enumerate(LENGTHS)])


@pytest.mark.parametrize("name", ["image", "action", "reward", "is_first", "is_terminal", "state"])
def test_rows_gather_from_all_shards(two_parts: Dataset, name: str) -> None:
    wanted = whole(name)
    random = np.random.default_rng(0)
    for shape in ((), (0,), (7,), (4, 3), (2, 3, 50)):
        index = random.integers(0, len(wanted), shape)
        found = two_parts.rows(name, index)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted[index])
    starts = np.array([0, 20, 32, 63, 77, 90, 33])
    windows = two_parts.windows(name, starts, 12)
    np.testing.assert_array_equal(windows, wanted[starts[:, None] + np.arange(12)])
    assert two_parts.nbytes(name) == wanted.nbytes


def test_rows_outside_are_an_error(two_parts: Dataset) -> None:
    for index in (-1, 102):
        with pytest.raises(IndexError):
            two_parts.rows("reward", index)


def test_parts_and_episode_facts(two_parts: Dataset) -> None:
    info = two_parts.episode_info
    assert (two_parts.n_frames, two_parts.n_episodes) == (102, 5)
    assert (two_parts.action_dim, two_parts.state_dim, two_parts.image_size) == (ACTIONS, STATES, SIZE)
    assert [(p.source, p.task, p.first_row, p.last_row) for p in two_parts.parts] == [
        ("random", "", 0, 63),
        ("expert", "walk", 63, 102),
    ]
    assert info.length.tolist() == list(LENGTHS) and info.start.tolist() == [0, 20, 32, 63, 77]
    assert info.part.tolist() == [0, 0, 0, 1, 1] and info.task.tolist() == ["", "", "", "walk", "walk"]
    assert info.seed.tolist() == [1000, 1001, 1002, 1003, 1004]
    about = two_parts.describe(bins=4)
    assert json.loads(json.dumps(about)) == about
    assert [sum(p["histogram"]) for p in about["parts"]] == [3, 2]
    assert about["parts"][1]["return_max"] == pytest.approx(info.returns[3:].max())


def test_parts_that_do_not_mix_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path / "base")
    for name, change in {
        "gl": {"renderer": "gl"},
        "camera": {"camera": 1},
        "states": {"renderer": "", "image_size": 0},
    }.items():
        make_dataset(tmp_path / name, **change)
        with pytest.raises(BadInput, match="do not mix"):
            Dataset.open([tmp_path / "base", tmp_path / name], "walker")
    make_dataset(tmp_path / "cheetah", domain="cheetah")
    with pytest.raises(BadInput, match="belongs to domain cheetah"):
        Dataset.open([tmp_path / "base", tmp_path / "cheetah"], "walker")
    with pytest.raises(BadInput, match="bitagent collect"):
        Dataset.open([tmp_path / "absent"], "walker")


def test_states_only_says_how_to_render(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", renderer="", image_size=0)
    dataset = Dataset.open([tmp_path / "data"], "walker")
    assert not dataset.has("image") and dataset.rows("state", [0]).shape == (1, STATES)
    with pytest.raises(BadInput, match=r"bitagent collect --preset walker --render .*data"):
        dataset.rows("image", [0])
    with pytest.raises(BadInput, match="bitagent embed"):
        dataset.rows("embedding", [0])


# ---------------------------------------------------------------------------- embeddings


def embed(dataset: Path, path: Path, dim: int = 7, seed: int = 0) -> None:
    source = room.artifacts.load(dataset)
    blocks = [
        np.random.default_rng([seed, index]).normal(size=(len(shard.arrays["reward"]), dim))
        for index, shard in enumerate(Dataset.open([dataset], source.domain).shards)
    ]
    write_sidecar(path, make_run(path.parent), [source], blocks, {}, {"backbone": "noise"})


def test_embeddings_lie_beside_their_rows(tmp_path: Path, two_parts: Dataset) -> None:
    for name in ("random", "expert"):
        embed(tmp_path / name, tmp_path / f"embedded-{name}")
    sidecars = [tmp_path / "embedded-random", tmp_path / "embedded-expert"]
    dataset = Dataset.open([tmp_path / "random", tmp_path / "expert"], "walker", sidecars)
    wanted = np.concatenate([load_file(f)["embedding"] for s in sidecars for f in sorted(s.glob("*.safetensors"))])
    assert dataset.dim_embedding == 7 and wanted.dtype == np.float16
    np.testing.assert_array_equal(dataset.rows("embedding", np.arange(102)), wanted)
    with pytest.raises(BadInput, match="run: bitagent embed"):  # the other way round
        Dataset.open([tmp_path / "random", tmp_path / "expert"], "walker", sidecars[::-1])
    with pytest.raises(BadInput, match="run: bitagent embed"):
        Dataset.open([tmp_path / "random", tmp_path / "expert"], "walker", sidecars[:1])


def test_embeddings_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data")
    embed(tmp_path / "data", tmp_path / "embedded")
    make_dataset(tmp_path / "data", (20, 12, 30))
    with pytest.raises(BadInput, match="as it is now; run: bitagent embed"):
        Dataset.open([tmp_path / "data"], "walker", [tmp_path / "embedded"])


def test_embeddings_of_two_backbones_are_refused(tmp_path: Path) -> None:
    for name, dim in (("a", 7), ("b", 8)):
        make_dataset(tmp_path / name)
        embed(tmp_path / name, tmp_path / f"embedded-{name}", dim)
    with pytest.raises(BadInput, match="different sizes"):
        Dataset.open([tmp_path / "a", tmp_path / "b"], "walker", [tmp_path / "embedded-a", tmp_path / "embedded-b"])
