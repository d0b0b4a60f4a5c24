"""Shard files: broken ones are refused whatever is wrong with them, and large ones cost no memory."""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from stages.data import catalog
from stages.data.episodes import Dataset
from stages.data.shards import CODES, read_header
from stages.runtime import artifacts
from stages.runtime.errors import BadInput
from tests.data.synthetic import make_dataset, make_episode, make_writer, start, write_meta

# ---------------------------------------------------------------------------- broken files


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON header in place, padded to its old length."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    assert len(text) <= length
    file.write_bytes(content[:8] + text.ljust(length) + content[8 + length :])


def set_field(name: str, key: str, value: Any) -> Callable[[Path], None]:
    return lambda file: rewrite_header(file, lambda header: header[name].update({key: value}))


def overwrite(offset: int, content: bytes) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        old = file.read_bytes()
        file.write_bytes(old[:offset] + content + old[offset + len(content) :])

    return change


BREAK: dict[str, Callable[[Path], None]] = {
    "empty": lambda file: file.write_bytes(b"") and None,
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 1),
    "absurd header size": overwrite(0, (2**63).to_bytes(8, "little")),
    "header beyond the file": overwrite(0, (10**6).to_bytes(8, "little")),
    "no JSON": overwrite(8, b"x" * 40),
    "deep JSON": overwrite(8, b"[" * 4000),
    "a list": overwrite(8, b"[]".ljust(4088)),
    "outside": set_field("reward", "data_offsets", [10**12, 10**12 + 252]),
    "negative": set_field("reward", "data_offsets", [-252, 0]),
    "fractional": set_field("reward", "shape", [63.0]),
    "true": set_field("reward", "shape", [True]),
    "huge": set_field("reward", "shape", [2**62, 2**62]),
    "no shape": set_field("reward", "shape", None),
    "unknown dtype": set_field("reward", "dtype", "Q9"),
    "wrong dtype": set_field("reward", "dtype", "F64"),
    "same size, wrong dtype": set_field("episode_seed", "dtype", "F64"),
    "fewer columns": set_field("action", "shape", [126, 3]),
    "odd frames": set_field("image", "shape", [63, 3, 2, 8]),
    "absent": lambda file: rewrite_header(file, lambda header: header.pop("is_first") and None),
    "bounds": lambda file: overwrite(read_header(file)["episode_start"].offset + 8, b"\xff" * 8)(file),
}


@pytest.mark.parametrize("name", BREAK)
def test_a_broken_shard_is_named(tmp_path: Path, name: str) -> None:
    path = make_dataset(tmp_path / "data").path
    BREAK[name](path / "shard-00000.safetensors")
    with pytest.raises(BadInput, match=r"shard-00000.safetensors is missing or corrupted"):
        Dataset.open([path], "walker")


@pytest.mark.parametrize("name", BREAK)
def test_our_own_reading_of_headers_suffices(tmp_path: Path, name: str) -> None:
    """The same breakage behind `artifacts.load`, whose look through safetensors hides some of it."""
    artifact = make_dataset(tmp_path / "data")
    BREAK[name](artifact.path / "shard-00000.safetensors")
    with pytest.raises(BadInput, match="corrupted"):
        catalog.open_shards(artifact)


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ENOMEM, errno.EACCES, errno.EIO])
def test_a_shard_that_cannot_be_read_is_not_called_corrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Neither where mapping is refused, nor where opening is; chmod does not bind root, so the calls are refused."""
    path = make_dataset(tmp_path / "data").path
    writer = make_writer(tmp_path / "other")
    writer.append(0, make_episode(0))

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    for place, name, read in (
        (mmap, "mmap", lambda: Dataset.open([path], "walker")),
        (Path, "open", lambda: read_header(path / "shard-00000.safetensors")),
        (Path, "read_bytes", lambda: writer.read(0)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refuse)
            with pytest.raises(BadInput, match=r"\.safetensors cannot be read: ") as caught:
                read()
        assert "corrupted" not in str(caught.value) and "delete" not in str(caught.value)
    assert len(Dataset.open([path], "walker").shards) == 1 and len(writer.read(0))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 900), value=st.integers(0, 255))
def test_a_changed_header_byte_is_refused_or_harmless(tmp_path: Path, place: int, value: int) -> None:
    artifact = artifacts.load(tmp_path / "data") if (tmp_path / "data").exists() else make_dataset(tmp_path / "data")
    file = artifact.path / "shard-00000.safetensors"
    sound = file.read_bytes()
    overwrite(place, bytes([value]))(file)
    try:
        shards = catalog.open_shards(artifact)
        [float(a.sum(dtype=np.float64)) for shard in shards for a in shard.arrays.values()]
    except BadInput:
        pass
    finally:
        file.write_bytes(sound)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 62}, {"episodes": 2}, {"returns": [0.0, 1.0]}, {"returns": "x"}, {"returns": [0, 1, float("nan")]},
        {"action_dim": "6"}, {"image_size": 8}, {"source": None},
    ],
    ids=str,
)  # fmt: skip
def test_facts_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = make_dataset(tmp_path / "data").path
    meta = json.loads((path / "artifact.json").read_text())
    meta["extra"] |= change
    write_meta(path, meta)
    with pytest.raises(BadInput, match="corrupted"):
        Dataset.open([path], "walker")


# ---------------------------------------------------------------------------- memory


def test_fifty_gigabytes_open_and_sample_in_bounded_memory(tmp_path: Path) -> None:
    """50 GB of shards with holes for frames: nothing but headers is read, and mapped pages are given back."""
    code = """
        import sys
        from pathlib import Path
        from stages.data import episodes
        from stages.data.sampler import Sampler
        def resident(key):
            return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) // 1024
        before = resident("VmRSS")
        episodes.RESIDENT_BYTES = 64 * 2**20
        dataset = episodes.Dataset.open([Path(sys.argv[1])], "walker")
        sampler = Sampler(dataset, 32, 32, seed=0)
        opened = resident("VmRSS") - before
        for step in range(64):  # 800 MB of frames
            sampler.sample(step)
        print(dataset.nbytes("image") // 10**9, opened, resident("VmHWM") - before)
    """
    write_sparse_dataset(tmp_path / "data", shards=196, rows=20_800, episode=1040)
    child = start(code, tmp_path / "data")
    gigabytes, opened, peak = map(int, child.communicate()[0].split())
    assert gigabytes == 50 and opened < 60 and peak < 300, (gigabytes, opened, peak)


def write_sparse_dataset(path: Path, shards: int, rows: int, episode: int) -> None:
    """A dataset whose frames are holes in one file under many names; no checksum in it is right."""
    meta = dict(make_dataset(path, [episode] * (rows // episode), image_size=0, renderer="").meta)
    first = path / "shard-00000.safetensors"
    arrays = load_file(first)
    image = {"dtype": "U8", "shape": [rows, 3, 64, 64]}
    header, end = {}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": CODES[array.dtype], "shape": array.shape, "data_offsets": [begin, end]}
    header["image"] = image | {"data_offsets": [end, end + rows * 3 * 64 * 64]}
    text = json.dumps(header).encode()
    with first.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            handle.write(array.tobytes())
        handle.truncate(handle.tell() + rows * 3 * 64 * 64)
    files = [first, *(path / f"shard-{index:05d}.safetensors" for index in range(1, shards))]
    for file in files[1:]:
        os.link(first, file)
    extra = meta["extra"]
    extra |= {key: extra[key] * shards for key in ("episodes", "frames", "returns")}
    extra |= {"image_size": 64, "renderer": "ray"}
    meta["files"] = {file.name: "" for file in files}
    write_meta(path, meta)
