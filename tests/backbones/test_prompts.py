"""Prompts shown as a video file or a folder of frames."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.backbones import prompts
from stages.backbones.base import resize
from stages.backbones.offline.tower import OfflineBackbone
from stages.backbones.prompts import _stretched, embed_prompt_video, read_frames, video_digest
from stages.runtime.errors import BadInput
from tests.backbones.trained import make_offline


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> OfflineBackbone:
    return make_offline(tmp_path_factory.mktemp("run"))


def pictures(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_folder(folder: Path, frames: np.ndarray) -> Path:
    folder.mkdir()
    for i, frame in enumerate(frames):
        iio.imwrite(folder / f"{i:03d}.png", frame)
    return folder


def test_a_folder_of_frames_is_the_mean_of_its_whole_windows(backbone: OfflineBackbone, tmp_path: Path) -> None:
    frames = pictures(10)
    found = embed_prompt_video(backbone, write_folder(tmp_path / "f", frames))
    chw = torch.from_numpy(frames.transpose(0, 3, 1, 2))
    windows = backbone.encode_video(torch.stack([chw[i : i + 8] for i in range(3)]))
    assert found.shape == (backbone.dim,)
    assert torch.allclose(found, F.normalize(windows.mean(0), dim=-1), atol=2e-2)


def test_a_short_video_begins_with_its_first_frame_repeated(backbone: OfflineBackbone, tmp_path: Path) -> None:
    frames = pictures(3)
    found = embed_prompt_video(backbone, write_folder(tmp_path / "f", frames))
    window = torch.from_numpy(frames[[0, 0, 0, 0, 0, 0, 1, 2]].transpose(0, 3, 1, 2))[None]
    assert torch.allclose(found, backbone.encode_video(window)[0], atol=2e-2)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_a_video_file_is_read(name: str, tmp_path: Path) -> None:
    frames = np.repeat(np.linspace(20, 220, 12, dtype=np.uint8)[:, None, None, None], 64, 1)
    frames = np.ascontiguousarray(np.broadcast_to(frames, (12, 64, 64, 3)))
    iio.imwrite(tmp_path / name, frames)
    found = read_frames(tmp_path / name, 64)
    assert found.shape == (12, 3, 64, 64) and found.dtype == np.uint8
    assert np.abs(found.mean((1, 2, 3)) - frames.mean((1, 2, 3))).max() < 12  # coded, with losses
    assert found[0].mean() < found[11].mean()


def test_the_middle_square_is_taken(tmp_path: Path) -> None:
    frames = pictures(2, height=20, width=32)
    found = read_frames(write_folder(tmp_path / "f", frames), 20)
    assert np.array_equal(found, frames[:, :, 6:26].transpose(0, 3, 1, 2))


def test_a_backbone_of_enlarged_frames_sees_the_first_eight_stretched(tmp_path: Path) -> None:
    """Pixels 0 and 100 side by side, twice as wide: 0, 25, 75, 100 (half-pixel centres, ends held)."""
    backbone = make_offline(tmp_path / "run")
    backbone.enlarge()
    frames = pictures(12, height=32, width=96)
    frames[:, :, :2] = np.array([0, 100], np.uint8)[None, None, :, None]
    folder = write_folder(tmp_path / "f", frames)
    stretched = read_frames(folder, 64, square=partial(_stretched, size=64))
    assert stretched.shape == (12, 3, 64, 64)
    assert np.array_equal(read_frames(folder, 192, square=partial(_stretched, size=192))[0, 0, 0, :3], [0, 25, 75])
    wanted = backbone.encode_video(torch.from_numpy(stretched[:8])[None])[0]
    found = embed_prompt_video(backbone, folder)
    assert torch.allclose(found, wanted, atol=2e-2)
    middle = backbone.encode_video(torch.from_numpy(read_frames(folder, backbone.frame_size)[:8])[None])[0]
    assert (found - middle).abs().max() > 5e-2


def test_what_cannot_be_a_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("walk")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    mixed = write_folder(tmp_path / "mixed", pictures(1))
    iio.imwrite(mixed / "z.png", pictures(1, 10, 10)[0])
    iio.imwrite(tmp_path / "deep.png", pictures(1)[0])
    for name in ("nothing.mp4", "empty", "notes.txt", "broken.mp4", "broken.gif", "mixed"):
        with pytest.raises(BadInput):
            read_frames(tmp_path / name, 64)


def test_frames_of_a_folder_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frames = pictures(12)
    for i, frame in enumerate(frames):
        iio.imwrite(tmp_path / f"frame_{i + 1}.png", frame)
    np.testing.assert_array_equal(read_frames(tmp_path, 64), frames.transpose(0, 3, 1, 2))


def test_a_large_frame_is_resized_as_a_backbone_would(backbone: OfflineBackbone, tmp_path: Path) -> None:
    """Frame by frame, the same as the middle squares of the whole video resized at once."""
    frames = pictures(9, height=90, width=130)
    folder = write_folder(tmp_path / "f", frames)
    squares = torch.from_numpy(np.ascontiguousarray(frames[:, :, 20:110].transpose(0, 3, 1, 2)))
    for size, mode in ((64, "bicubic"), (48, "bilinear")):
        np.testing.assert_array_equal(read_frames(folder, size, mode), resize(squares, size, mode).numpy())
    whole = backbone.encode_episode(squares.numpy())[7:].mean(0)
    assert torch.allclose(embed_prompt_video(backbone, folder), F.normalize(whole, dim=-1), atol=1e-6)


def test_a_long_large_video_is_read_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A video without end of 2 MB a frame: one frame at a time is held, and no more are decoded than are used."""
    decoded = 0

    def endless(file: Path) -> Iterator[np.ndarray]:
        nonlocal decoded
        while True:
            decoded += 1
            yield np.full((720, 960, 3), decoded % 256, np.uint8)

    monkeypatch.setattr(iio, "imiter", endless)
    monkeypatch.setattr(prompts, "MAX_FRAMES", 60)
    (tmp_path / "long.mp4").touch()
    tracemalloc.start()
    found = read_frames(tmp_path / "long.mp4", 32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (60, 3, 32, 32) and np.array_equal(found[:, 0, 0, 0], np.arange(1, 61))
    assert decoded == 61 and peak < 12e6, (decoded, peak)
    assert capsys.readouterr().err.endswith("long.mp4 has more than 60 frames; the first 60 are used\n")


def test_a_video_of_the_most_frames_is_used_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prompts, "MAX_FRAMES", 5)
    folder = write_folder(tmp_path / "f", pictures(5))
    assert len(read_frames(folder, 64)) == 5 and capsys.readouterr().err == ""
    iio.imwrite(folder / "005.png", pictures(1)[0])
    assert len(read_frames(folder, 64)) == 5 and "the first 5 are used" in capsys.readouterr().err


def test_a_large_video_is_named_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes(30_000_000))
    tracemalloc.start()
    video_digest(tmp_path / "large.mp4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
