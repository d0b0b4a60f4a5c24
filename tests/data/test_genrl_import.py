"""Importing GenRL's .npz episodes: good ones exactly, broken and hostile ones named, and bounded memory."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.data import genrl_import
from stages.data.episodes import Dataset
from stages.data.genrl_import import BROKEN, find_episodes, import_genrl, read_episode
from stages.runtime import artifacts
from stages.runtime.errors import BadInput, Interrupted
from tests.data.synthetic import make_run

ACTIONS = 6
Arrays = dict[str, np.ndarray]


def genrl_arrays(seed: int, rows: int = 12) -> Arrays:
    random = np.random.default_rng(seed)
    action = random.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32)
    clip = random.normal(size=(rows, 512)).astype(np.float32)
    clip /= np.linalg.norm(clip, axis=1, keepdims=True)
    clip[:7] = 0
    action[0] = 0
    return {
        "observation": random.integers(0, 256, (rows, 3, 64, 64), dtype=np.uint8),
        "action": action,
        "reward": np.where(np.arange(rows) == 0, 0, random.random(rows)).astype(np.float32),
        "discount": np.ones((rows, 1), np.float32),
        "is_first": np.arange(rows) == 0,
        "is_last": np.arange(rows) == rows - 1,
        "is_terminal": np.zeros(rows, bool),
        "clip_video": clip,
    }


def name_of(index: int, rows: int = 12) -> str:
    return f"{index}-20240101T000000-{index:08x}-{rows}.npz"


def save(file: Path, arrays: Arrays, compressed: bool = True) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good episodes, one of them in a folder of its own; in natural, not alphabetic, order."""
    save(tmp_path / "genrl" / name_of(2), genrl_arrays(2))
    save(tmp_path / "genrl" / name_of(10), genrl_arrays(10, 15), compressed=False)
    save(tmp_path / "genrl" / "more" / name_of(1), genrl_arrays(1) | {"reward": genrl_arrays(1)["reward"][:, None]})
    return tmp_path / "genrl"


def run(folder: Path, **changed: Any) -> Any:
    fresh = changed.pop("fresh", False)
    return import_genrl(folder, make_run(folder.parent, fresh=fresh), "walk", **changed)


def check_episode(dataset: Dataset, number: int, wanted: Arrays) -> None:
    found = dataset.episode(number)
    for key, name in {"image": "observation", "action": "action", "is_first": "is_first"}.items():
        np.testing.assert_array_equal(getattr(found, key), wanted[name])
    np.testing.assert_array_equal(found.reward, wanted["reward"].reshape(-1))
    np.testing.assert_array_equal(found.is_terminal, wanted["is_terminal"])
    assert found.state is None and found.seed == -1
    rows = dataset.episode_start[number] + np.arange(dataset.episode_length[number])
    embedding = dataset.rows("embedding", rows)
    np.testing.assert_allclose(embedding[7:], wanted["clip_video"][7:], atol=2e-4)
    np.testing.assert_array_equal(embedding[:7], np.repeat(embedding[7:8], 7, axis=0))


@pytest.mark.parametrize("workers", [1, 3])
def test_episodes_and_embeddings_are_imported_exactly(folder: Path, workers: int) -> None:
    artifact, embeddings, skipped = run(folder, workers=workers)
    assert skipped == []
    assert embeddings is not None and embeddings.meta["extra"] == {"backbone": "internvideo2", "dim": 512}
    dataset = Dataset.open([artifact.path], "walker", [embeddings.path])
    for number, wanted in enumerate((genrl_arrays(2), genrl_arrays(10, 15), genrl_arrays(1))):
        check_episode(dataset, number, wanted)
    extra = artifact.meta["extra"]
    assert (extra["source"], extra["task"], extra["state_dim"], extra["renderer"]) == ("imported", "walk", 0, "genrl")


def test_an_import_is_reused_until_the_folder_changes(folder: Path) -> None:
    first, second = run(folder), run(folder)
    assert first[0].id == second[0].id and first[1].id == second[1].id
    save(folder / name_of(3), genrl_arrays(3))
    with pytest.raises(BadInput, match="--fresh"):
        run(folder)
    assert run(folder, fresh=True)[0].meta["extra"]["episodes"] == 4


def test_an_imported_dataset_cannot_be_rendered(folder: Path) -> None:
    dataset = Dataset.open([run(folder)[0].path], "walker")
    with pytest.raises(BadInput, match="no physics state"):
        dataset.rows("state", [0])


def test_missing_clip_video_means_no_sidecar(folder: Path) -> None:
    arrays = genrl_arrays(4)
    del arrays["clip_video"]
    save(folder / name_of(4), arrays)
    artifact, embeddings, skipped = run(folder)
    assert embeddings is None and skipped == []
    assert artifact.meta["extra"]["episodes"] == 4
    assert not (folder.parent / "embeddings").exists()


@pytest.mark.parametrize("zeros", [0, 7, 8, 12])
def test_leading_zero_rows_are_filled_from_the_first_embedding(folder: Path, zeros: int) -> None:
    arrays = genrl_arrays(4, 15)
    arrays["clip_video"] = np.random.default_rng(0).normal(size=(15, 512)).astype(np.float32)
    arrays["clip_video"] /= np.linalg.norm(arrays["clip_video"], axis=1, keepdims=True)
    arrays["clip_video"][:zeros] = 0
    save(folder / name_of(0, 15), arrays)
    artifact, embeddings, skipped = run(folder)
    assert skipped == []
    found = Dataset.open([artifact.path], "walker", [embeddings.path]).rows("embedding", np.arange(15))
    np.testing.assert_allclose(found[zeros:], arrays["clip_video"][zeros:], atol=2e-4)
    np.testing.assert_array_equal(found[:zeros], np.repeat(found[zeros : zeros + 1], zeros, axis=0))


def test_extra_arrays_are_ignored(folder: Path) -> None:
    extra = {"clip_img": np.zeros((12, 768), np.float32), "notes": np.array([{"any": "object"}], dtype=object)}
    save(folder / name_of(4), genrl_arrays(4) | extra)
    artifact, embeddings, skipped = run(folder)
    assert skipped == [] and artifact.meta["extra"]["episodes"] == 4 and embeddings is not None


# ---------------------------------------------------------------------------- links


def test_links_are_followed_and_nothing_counts_twice(folder: Path, tmp_path: Path) -> None:
    """A linked folder of episodes and a linked episode are imported; what has a path of its own keeps that."""
    save(tmp_path / "disk" / name_of(3), genrl_arrays(3))
    save(tmp_path / "other" / name_of(4), genrl_arrays(4))
    before = list(find_episodes(folder))
    (folder / "a-disk").symlink_to(tmp_path / "disk")
    (folder / "again").symlink_to(tmp_path / "disk")
    (folder / name_of(4)).symlink_to(tmp_path / "other" / name_of(4))
    (folder / "0.npz").symlink_to(folder / "more" / name_of(1))  # the same episode, before its own place
    (folder / "0-more").symlink_to(folder / "more")
    (folder / "gone.npz").symlink_to(tmp_path / "nowhere")
    found = find_episodes(folder)
    assert sorted(found) == sorted([*before, f"a-disk/{name_of(3)}", name_of(4)])
    assert run(folder)[0].meta["extra"]["episodes"] == 5


def test_links_in_a_circle_end(folder: Path) -> None:
    wanted = find_episodes(folder)
    (folder / "more" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    assert find_episodes(folder) == wanted


def test_a_linked_folder_is_imported_like_the_folder(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    (folder / "deeper").symlink_to(folder / "more")
    assert list(find_episodes(link)) == list(find_episodes(folder))
    assert run(link)[0].id == run(folder)[0].id


# ---------------------------------------------------------------------------- broken and hostile files


def truncated(file: Path) -> None:
    os.truncate(save(file, genrl_arrays(5)), 30_000)


def changed(**arrays: Any) -> Callable[[Path], None]:
    """The good arrays of episode 5 with some replaced, or left out where None."""

    def write(file: Path) -> None:
        made = {key: value for key, value in (genrl_arrays(5) | arrays).items() if value is not None}
        save(file, made)

    return write


def with_header(name: str, shape: str, descr: str = "|u1") -> Callable[[Path], None]:
    """An episode whose array `name` declares a shape it does not hold."""

    def write(file: Path) -> None:
        save(file, {key: value for key, value in genrl_arrays(5).items() if key != name})
        header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
        header += b" " * (-(len(header) + 11) % 64) + b"\n"
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(
                f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
            )

    return write


def text_file(file: Path) -> None:
    file.write_text("not a zip")


def plain_array(file: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    file.write_bytes(buffer.getvalue())


GOOD = genrl_arrays(5)
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "not a zip"),
    "text": (text_file, "not a zip"),
    "npy": (plain_array, "not a zip"),
    "empty": (lambda file: file.write_bytes(b"") and None, "not a zip"),
    "pickled": (changed(reward=np.array([{"a": 1}] * 12, dtype=object)), "pickled"),
    "pickled frames": (changed(observation=np.array([b"x", None], dtype=object)), "pickled"),
    "no frames": (changed(observation=None), "no array 'observation'"),
    "no action": (changed(action=None), "no array 'action'"),
    "float frames": (changed(observation=GOOD["observation"] / np.float32(255)), "observation is float32"),
    "frames last": (changed(observation=GOOD["observation"].transpose(0, 2, 3, 1)), r"observation is uint8 \(12, 64"),
    "larger frames": (changed(observation=np.zeros((12, 3, 84, 84), np.uint8)), "not uint8"),
    "another body": (changed(action=np.zeros((12, 4), np.float32)), "action is float32"),
    "double actions": (changed(action=GOOD["action"].astype(np.float64)), "action is float64"),
    "big endian": (changed(reward=GOOD["reward"].astype(">f4")), "reward is >f4"),
    "nan reward": (changed(reward=np.full(12, np.nan, np.float32)), "not finite"),
    "short action": (changed(action=GOOD["action"][:-1]), "action has shape"),
    "scalar": (changed(is_first=np.array(True)), "is_first is bool"),
    "no rows": (changed(observation=GOOD["observation"][:0]), "0 rows"),
    "two starts": (changed(is_first=np.arange(12) % 6 == 0), "is_first"),
    "zero clip": (changed(clip_video=np.zeros((12, 512), np.float32)), "zeros alone"),
    "zero row": (changed(clip_video=GOOD["clip_video"] * (np.arange(12) != 9)[:, None]), "all zero in row 9"),
    "small rows": (changed(clip_video=GOOD["clip_video"] * np.float32(0.01)), "no unit norm"),
    "nan clip": (changed(clip_video=np.full((12, 512), np.nan, np.float32)), "no unit norm"),
    "narrow clip": (changed(clip_video=GOOD["clip_video"][:, :256]), "clip_video is float32"),
    "short clip": (changed(clip_video=GOOD["clip_video"][:-1]), "clip_video has 11 rows"),
    "absurd rows": (with_header("observation", "(10000000000, 3, 64, 64)"), "10000000000 rows"),
    "absurd shape": (with_header("observation", "(4611686018427387904, 4611686018427387904)"), "observation is uint8"),
    "many rows": (with_header("observation", "(501, 3, 64, 64)"), "not what it holds"),
    "negative shape": (with_header("observation", "(-12, 3, 64, 64)"), "rows"),
    "code for a shape": (with_header("observation", "__import__('os').getpid()"), ""),
    "deep shape": (with_header("observation", "(" * 3000 + ")" * 3000), ""),
    "odd descr": (with_header("observation", "(12, 3, 64, 64)", "O"), "pickled"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_episode_is_named_and_skipped(folder: Path, name: str) -> None:
    write, reason = BAD[name]
    write(folder / name_of(5))
    artifact, embeddings, skipped = run(folder)
    assert [skip.file for skip in skipped] == [name_of(5)]
    assert skipped[0].reason and re.search(reason, skipped[0].reason), skipped[0].reason
    assert artifact.meta["extra"]["episodes"] == 3 and embeddings is not None
    dataset = Dataset.open([artifact.path], "walker", [embeddings.path])
    check_episode(dataset, 1, genrl_arrays(10, 15))
    assert run(folder)[2] == skipped  # a reused import names them too


@pytest.mark.parametrize("name", ["truncated", "zero row"])
def test_strict_stops_at_the_bad_episode(folder: Path, name: str) -> None:
    BAD[name][0](folder / name_of(5))
    with pytest.raises(BadInput, match=rf"{name_of(5)}: .*without --strict"):
        run(folder, strict=True)
    assert not (folder.parent / "data" / "imported-walk").exists()
    run(folder)
    with pytest.raises(BadInput, match=name_of(5)):  # a lenient import is not passed off as a strict one
        run(folder, strict=True)


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "genrl").mkdir()
    with pytest.raises(BadInput, match=r"no \.npz"):
        run(tmp_path / "genrl")
    text_file(tmp_path / "genrl" / name_of(0))
    with pytest.raises(BadInput, match="none of the 1 episodes"):
        run(tmp_path / "genrl")


def test_a_zip_bomb_is_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that declares little and holds much: no more than declared is read."""
    file = save(folder / name_of(5), {k: v for k, v in genrl_arrays(5).items() if k != "observation"})
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (12, 3, 64, 64), }".ljust(117) + b"\n"
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("observation.npy", b"\x93NUMPY\x01\x00\x76\x00" + header + bytes(200_000_000))
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="not what it holds"):
        read_episode(file, ACTIONS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
@pytest.mark.parametrize("compressed", [True, False])
def test_flipped_bytes_are_refused_or_harmless(
    tmp_path: Path, compressed: bool, edits: list[tuple[float, int]]
) -> None:
    good = tmp_path / "good.npz"
    if not good.exists():
        small = genrl_arrays(0, 8) | {"observation": np.zeros((8, 3, 64, 64), np.uint8)}
        save(good, small, compressed)
    content = bytearray(good.read_bytes())
    structure = len(content) if compressed else 1200  # uncompressed: mostly frames, so aim at headers and directory
    for place, value in edits:
        at = int(place * structure)
        content[at if compressed or at < 600 else len(content) - at] = value
    bad = tmp_path / "bad.npz"
    bad.write_bytes(content)
    with contextlib.suppress(*BROKEN):
        assert len(read_episode(bad, ACTIONS)) == 8


def test_a_stopped_import_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, count = genrl_import.read_episode, 0

    def read_then_stop(file: Path, actions: int) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(file, actions)

    monkeypatch.setattr(genrl_import, "read_episode", read_then_stop)
    with pytest.raises(Interrupted) as stopped:
        run(folder)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    done = count
    artifact = run(folder)[0]
    assert count == 3 and done >= 2
    assert artifact.id == run_elsewhere(folder).id


def run_elsewhere(folder: Path) -> artifacts.Artifact:
    return import_genrl(folder, make_run(folder.parent / "again"), "walk")[0]
