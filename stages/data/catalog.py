"""Which parts, episodes and shards a dataset consists of: opened, checked and numbered through.

Used by `stages.data.episodes.Dataset`; nothing here reads a frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.shards import Shard, allow_open_files, check_episodes
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput

ENLARGED = "+enlarged"  # ends the id of a backbone that reads the stored frames, bilinearly resized to its size
FACTS = {
    "source": str, "task": str, "renderer": str, "image_size": int, "action_dim": int, "state_dim": int,
    "episodes": int, "frames": int, "returns": list,
}  # fmt: skip


PADDED = 7  # first rows of a branch whose windows of 8 frames (stages/worlds/motion.py) would begin before it


@dataclass(frozen=True)
class Part:
    """One dataset artifact of an opened Dataset, with its place in the numbering of the whole."""

    artifact: Artifact
    source: str
    task: str
    episodes: int
    frames: int
    first_episode: int
    first_row: int
    cut: bool  # of branches, which begin in the middle of other episodes

    @property
    def last_row(self) -> int:
        """The row after its last one."""
        return self.first_row + self.frames


@dataclass(frozen=True)
class EpisodeInfo:
    """Facts of every episode, as arrays over all episodes: `part` indexes Dataset.parts, `start` is a global row."""

    part: np.ndarray  # (E,) int64
    source: np.ndarray  # (E,) str
    task: np.ndarray  # (E,) str
    returns: np.ndarray  # (E,) float64, sum of the task reward
    length: np.ndarray  # (E,) int64, rows
    start: np.ndarray  # (E,) int64
    seed: np.ndarray  # (E,) int64
    cut: np.ndarray  # (E,) bool, a branch
    origin: np.ndarray  # (E,) int64, the episode a branch was cut from, where that is opened, too; else its own number
    past: np.ndarray  # (E,) int64, rows at its beginning whose video windows lack their past: of a branch alone


def load_datasets(paths: Sequence[Path], domain: str) -> list[Artifact]:
    """The dataset artifacts at `paths`. Raises BadInput when one is missing or they do not mix."""
    if not paths:
        raise BadInput(f"no dataset to open; make one with: bitagent collect --preset {domain}")
    made_by = f"bitagent collect --preset {domain}"
    found = [artifacts.load(path, "collect", domain=domain, made_by=made_by) for path in paths]
    for artifact in found:
        _check_facts(artifact)
    first = found[0].meta["extra"]
    for artifact in found[1:]:
        for key in ("image_size", "renderer", "camera", "action_dim"):
            here = artifact.meta["extra"].get(key)
            if here != first.get(key):
                raise BadInput(
                    f"{found[0].path} and {artifact.path} do not mix: {key} is {first.get(key)!r} in one and {here!r} "
                    f"in the other; {_how_to_mix(found[0], artifact)}"
                )
    return found


def _how_to_mix(*pair: Artifact) -> str:
    for artifact in pair:
        if not artifact.meta["extra"]["state_dim"]:
            folder = artifact.path.parent
            return f"{artifact.path.name} has no physics states to render again: move one of the two out of {folder}"
    return "make one of them again, or its frames with `bitagent collect --render`"


def _check_facts(artifact: Artifact) -> None:
    extra = artifact.meta["extra"]
    for key, kind in FACTS.items():
        if type(extra.get(key)) is not kind:
            raise storage.corrupted(artifact.path / "artifact.json", ValueError(f"it has no sound {key!r}"))
    if not all(isinstance(r, int | float) and math.isfinite(r) for r in extra["returns"]):
        raise storage.corrupted(artifact.path / "artifact.json", ValueError("a return is not a finite number"))


def open_shards(artifact: Artifact) -> list[Shard]:
    """Map the shards of one dataset. Raises BadInput when they are not what artifact.json says."""
    names = sorted(n for n in artifact.meta["files"] if n.startswith("shard-") and n.endswith(".safetensors"))
    extra = artifact.meta["extra"]
    allow_open_files(len(names))
    shards = [Shard(artifact.path / name) for name in names]
    for shard in shards:
        check_episodes(shard.file, shard.arrays)
        for key, value in dimensions(shard.arrays).items():
            if extra[key] != value:
                raise storage.corrupted(shard.file, ValueError(f"{key} is {value}, artifact.json says {extra[key]}"))
    episodes = sum(len(s.arrays["episode_seed"]) for s in shards)
    frames = sum(len(s.arrays["reward"]) for s in shards)
    if not shards or (extra["episodes"], extra["frames"], len(extra["returns"])) != (episodes, frames, episodes):
        raise storage.corrupted(artifact.path / "artifact.json", ValueError("its counts differ from the shards"))
    return shards


def dimensions(arrays: Any) -> dict[str, int]:
    """action_dim, state_dim and image_size of a shard's arrays; 0 for what it does not hold."""
    return {
        "action_dim": int(arrays["action"].shape[1]),
        "state_dim": int(arrays["state"].shape[1]) if "state" in arrays else 0,
        "image_size": int(arrays["image"].shape[2]) if "image" in arrays else 0,
    }


def index_episodes(found: Sequence[Artifact], shards: Sequence[Sequence[Shard]]) -> tuple[list[Part], EpisodeInfo]:
    """Number the episodes and rows of all parts through."""
    parts: list[Part] = []
    starts, seeds, row, episode = [], [], 0, 0
    for artifact, group in zip(found, shards, strict=True):
        extra = artifact.meta["extra"]
        counts = extra["episodes"], extra["frames"]
        branches = "episode_origin" in group[0].arrays
        parts.append(Part(artifact, extra["source"], extra["task"], *counts, episode, row, branches))
        for shard in group:
            starts.append(shard.arrays["episode_start"][:-1] + row)
            seeds.append(np.array(shard.arrays["episode_seed"]))
            row += len(shard.arrays["reward"])
        episode += extra["episodes"]
    start = np.concatenate(starts)
    part = np.repeat(np.arange(len(parts)), [p.episodes for p in parts])
    cut = np.array([p.cut for p in parts])[part]
    info = EpisodeInfo(
        part=part,
        source=np.array([p.source for p in parts])[part],
        task=np.array([p.task for p in parts])[part],
        returns=np.concatenate([np.asarray(a.meta["extra"]["returns"], np.float64) for a in found]),
        length=np.diff(np.append(start, row)),
        start=start,
        seed=np.concatenate(seeds),
        cut=cut,
        origin=_origin_episodes(parts, shards),
        past=np.where(cut, PADDED, 0),
    )
    return parts, info


def _origin_episodes(parts: Sequence[Part], shards: Sequence[Sequence[Shard]]) -> np.ndarray:
    """(E,) the number of the episode that each was cut from, or its own.

    Raises BadInput when branches do not say where they were cut, or were cut from data that has changed since.
    """
    origin = np.arange(parts[-1].first_episode + parts[-1].episodes)
    opened = {str(p.artifact.meta["name"]): p for p in parts}
    for part, group in zip(parts, shards, strict=True):
        if not part.cut:
            continue
        cut_from, inputs = part.artifact.meta["extra"].get("cut_from"), part.artifact.meta["inputs"]
        places = np.concatenate([s.arrays["episode_origin"] for s in group])  # (E', 3): dataset, episode, row
        if type(cut_from) is not list or places.min() < 0 or places[:, 0].max() >= len(cut_from):
            reason = ValueError("it does not say which datasets its branches were cut from")
            raise storage.corrupted(part.artifact.path / "artifact.json", reason)
        for number, name in enumerate(cut_from):
            if (there := opened.get(name)) is None:
                continue
            if inputs.get(f"collect:{name}", there.artifact.id) != there.artifact.id:
                raise BadInput(
                    f"{part.artifact.path} was not cut from {there.artifact.path} as it is now; run: "
                    f"bitagent collect --preset {part.artifact.domain} --source branch --fresh"
                )
            mine = np.flatnonzero(places[:, 0] == number)
            if (places[mine, 1] < there.episodes).all():
                origin[part.first_episode + mine] = there.first_episode + places[mine, 1]
    return origin


def open_embeddings(paths: Sequence[Path], found: Sequence[Artifact], shards: Sequence[Sequence[Shard]]) -> list[Shard]:
    """Map the sidecar embeddings of each dataset. Raises BadInput when they are not of that dataset."""
    again = f"run: bitagent embed --preset {found[0].domain}"
    if len(paths) != len(found):
        raise BadInput(f"{len(found)} datasets but {len(paths)} sets of embeddings; {again}")
    twins: list[Shard] = []
    enlarged: list[bool] = []
    for path, dataset, group in zip(paths, found, shards, strict=True):
        sidecar = artifacts.load(
            path, "embed", domain=dataset.domain, made_by=f"bitagent embed --preset {dataset.domain}"
        )
        if dataset.id not in sidecar.meta["inputs"].values():
            raise BadInput(f"{path} was not made from {dataset.path} as it is now; {again}")
        enlarged.append(reads_enlarged(sidecar))
        if enlarged[-1] != enlarged[0]:
            raise BadInput(
                f"the embeddings {paths[0]} and {path} are of different pictures, one of enlarged frames: embed all "
                f"datasets alike with: bitagent embed --preset {dataset.domain} --set embed.frames=enlarged --fresh"
            )
        allow_open_files(len(group))
        twins += [_open_twin(path, shard) for shard in group]
    if len({twin.arrays["embedding"].shape[1] for twin in twins}) > 1:
        raise BadInput(f"the embeddings come from backbones of different sizes; use one for all datasets, {again}")
    return twins


def reads_enlarged(made: Artifact) -> bool:
    """Whether the backbone behind embeddings, or behind a model or policy made from them, read enlarged frames.

    The embeddings that came with GenRL's episodes are of such.
    """
    return made.meta["config"].get("import") == "genrl" or ENLARGED in made.meta["extra"].get("backbone_id", "")


def _open_twin(folder: Path, shard: Shard) -> Shard:
    twin = Shard(folder / shard.file.name)
    embedding = twin.arrays.get("embedding")
    if embedding is None or embedding.dtype != np.float16 or embedding.ndim != 2:
        raise storage.corrupted(twin.file, ValueError("it holds no (N, D) float16 'embedding'"))
    rows = len(shard.arrays["reward"])
    if len(embedding) != rows:
        raise storage.corrupted(twin.file, ValueError(f"it has {len(embedding)} rows for {rows} frames"))
    return twin
