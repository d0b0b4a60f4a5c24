"""Prompts that are shown instead of written: a video file or a folder of frames."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbones.base import Backbone, resize
from stages.runtime.errors import BadInput
from stages.runtime.names import natural_key

VIDEOS = (".mp4", ".gif", ".webm", ".mov", ".avi", ".mkv")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MAX_FRAMES = 1000
MAX_PIXELS = 4096 * 4096
BATCH = 64
BLOCK = 2**20  # bytes read at a time


def embed_prompt_video(backbone: Backbone, path: Path) -> Tensor:
    """What a video shows, as one unit vector (dim,): the mean over its windows of 8 frames.

    Frames are taken as they come, one a decision of the environment (walker: 20 a second); a shorter
    video than 8 frames begins with its first frame repeated. At most the first 1000 frames are used. A backbone that
    reads enlarged frames is shown what GenRL's is: the first 8 frames alone, stretched to the square.

    Raises:
        BadInput: no such path, not a video nor a folder of images, or not readable.
    """
    if backbone.enlarged:
        stretched = partial(_stretched, size=backbone.frame_size)
        frames = read_frames(path, backbone.frame_size, square=stretched)[: backbone.window]
    else:
        frames = read_frames(path, backbone.frame_size, backbone.resample)  # (T, 3, S, S)
    found = backbone.encode_episode(frames, BATCH)  # (T, dim)
    whole = found[min(backbone.window, len(found)) - 1 :]  # windows without repeated frames
    return F.normalize(whole.mean(0), dim=-1)


def video_digest(path: Path) -> bytes:
    """SHA-256 of a video file, or of the images of a folder: another video of the same name is another prompt.

    Raises BadInput when there is nothing to read.
    """
    found = hashlib.sha256()
    for file in image_files(path) if path.is_dir() else [path]:
        try:
            with file.open("rb") as handle:
                while block := handle.read(BLOCK):
                    found.update(block)
        except OSError as error:
            raise BadInput(
                f"{file} cannot be read ({error.strerror}); give a video file or a folder of frames"
            ) from None
    return found.digest()


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order: frame_2 before frame_10. Raises BadInput when there are none."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in IMAGES and not f.name.startswith(".")]
    if not files:
        raise BadInput(f"{folder} holds no images ({', '.join(IMAGES)}); give a video file or a folder of frames")
    return sorted(files, key=lambda f: natural_key(f.name))


def read_frames(
    path: Path, size: int, mode: str = "bicubic", square: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """A video file, or a folder of images in natural order of their names → uint8 (T, 3, size, size).

    Each frame is made square and resized as it is decoded: no more than one is held as it lies in the
    file, whatever the length. Of more than 1000 frames the first 1000 are taken, and a line on stderr says so.

    Args:
        mode: bicubic or bilinear, as in `resize`.
        square: makes (3, S, S) of a frame (H, W, 3); by default by cutting out the middle.
    Raises:
        BadInput: no such path, not a video nor a folder of images, not readable, or frames of several sizes.
    """
    frames: list[Tensor] = []
    sides: set[int] = set()
    for picture in _pictures(path):
        if len(frames) == MAX_FRAMES:
            print(f"note: {path} has more than {MAX_FRAMES} frames; the first {MAX_FRAMES} are used", file=sys.stderr)
            break
        cut = torch.from_numpy((square or _middle)(picture))  # (3, side, side)
        sides.add(len(cut[0]))
        if len(sides) > 1:
            raise BadInput(f"the frames in {path} differ in size; give frames of one size")
        frames.append(resize(cut[None], size, mode))
    return torch.cat(frames).numpy()


def _pictures(path: Path) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) of a video file, or the first one of each image of a folder, decoded one by one."""
    if path.is_dir():
        for file in image_files(path):
            yield _checked(file, next(_decoded(file)))
    elif path.is_file():
        if path.suffix.lower() not in VIDEOS:
            raise BadInput(f"{path} is not a video: give one of {', '.join(VIDEOS)}, or a folder of frames")
        for frame in _decoded(path):
            yield _checked(path, frame)
    else:
        raise BadInput(f"{path} does not exist; give a video file or a folder of frames")


def _decoded(file: Path) -> Iterator[np.ndarray]:
    """The frames of a file as they are decoded, at least one. Raises BadInput when that fails."""
    import imageio.v3 as iio

    frame = None
    try:
        for frame in iio.imiter(file):
            yield np.asarray(frame)
    except Exception as error:  # every decoder has its own errors
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise BadInput(f"{file} cannot be decoded ({reason}); give an mp4, a gif or a folder of PNG frames") from None
    if frame is None:
        raise BadInput(f"{file} holds no frame; give another video")


def _checked(file: Path, frame: np.ndarray) -> np.ndarray:
    """Any decoded picture → uint8 (H, W, 3)."""
    if frame.ndim == 2:
        frame = np.repeat(frame[..., None], 3, -1)
    if frame.ndim != 3 or frame.shape[-1] not in (3, 4) or frame.dtype != np.uint8 or 0 in frame.shape:
        raise BadInput(f"{file} has a frame of {frame.dtype} {frame.shape}; give 8-bit RGB or grey frames")
    if frame.shape[0] * frame.shape[1] > MAX_PIXELS:
        raise BadInput(
            f"{file} has frames of {frame.shape[1]}x{frame.shape[0]} pixels; make them smaller (64 is enough)"
        )
    return frame[..., :3]


def _stretched(frame: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) → (3, size, size), bilinearly without antialiasing, as OpenCV resizes."""
    chw = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    wide = F.interpolate(chw, (size, size), mode="bilinear", align_corners=False)
    return wide[0].round().to(torch.uint8).numpy()


def _middle(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) → (3, S, S) with S the shorter side, cut from the middle."""
    size = min(frame.shape[:2])
    top, left = (frame.shape[0] - size) // 2, (frame.shape[1] - size) // 2
    return np.ascontiguousarray(frame[top : top + size, left : left + size].transpose(2, 0, 1))
