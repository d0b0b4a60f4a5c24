"""The two ends of embedding a dataset: episodes' frames at the backbone's size, and rows that survive a stop."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from stages.backbones import Backbone, backbone_of
from stages.backbones.tuning import mllm_of, retune
from stages.data.episodes import Dataset, write_sidecar
from stages.runtime import artifacts, storage
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from stages.runtime.loop import progress, stop_signals
from stages.runtime.names import CONTROL, base_method, method_option, transfer_source
from stages.runtime.workers import follow_parent
from stages.worlds import PAPER
from stages.worlds.render import render_states

SAVE_SECONDS = 30.0
TUNED_BATCH = 64  # windows a forward pass of a tuned backbone
BLOCK = 2**24  # bytes reserved at a time


class FrameSource:
    """The frames of a dataset's episodes for a backbone of a given frame size.

    Stored frames when they have that size; else rendered again from the physics states, by the
    dataset's own renderer and camera; else (imported data) the stored ones, which the backbone resizes.
    With `enlarged` always the stored ones. `how` says which. Raises BadInput when there is nothing to make them from.
    """

    def __init__(self, dataset: Dataset, size: int, workers: int, enlarged: bool = False) -> None:
        if enlarged:
            dataset.row_shape("image")  # says what to do where there are none
        facts = dataset.parts[0].artifact.meta["extra"]
        self.dataset, self.size, self.workers = dataset, size, workers
        self.camera: int | None = facts.get("camera")
        self.renderer = str(facts["renderer"]) or "ray"
        self.rendered = dataset.image_size != size and dataset.has("state") and not enlarged
        if self.rendered:
            self.how = f"{self.renderer} at {size}"
        elif dataset.image_size == size:
            self.how = "stored"
        elif dataset.has("image"):
            self.how = f"{'enlarged' if enlarged else 'resized'} to {size}"
        else:
            raise BadInput(
                f"{dataset.parts[0].artifact.path} holds neither frames nor physics states; collect it again"
            )

    def episodes(self, start: int) -> Iterator[np.ndarray]:
        """uint8 (T, 3, H, W) of each episode from number `start` on."""
        numbers = range(start, self.dataset.n_episodes)
        if not self.rendered:
            for number in numbers:
                yield self._stored(number)
        elif self.workers <= 1:
            for number in numbers:
                yield self._render(number)
        else:
            yield from self._render_ahead(numbers)

    def _stored(self, number: int) -> np.ndarray:
        image = self.dataset.episode(number).image
        assert image is not None
        return image

    def _job(self, number: int) -> tuple[Any, ...]:
        state = self.dataset.episode(number).state
        assert state is not None
        return self.dataset.domain, np.array(state), self.size, self.camera, self.renderer

    def _render(self, number: int) -> np.ndarray:
        return render_states(*self._job(number))

    def _render_ahead(self, numbers: range) -> Iterator[np.ndarray]:
        """Render over processes, a few episodes ahead of the backbone, in order."""
        with ProcessPoolExecutor(self.workers, get_context("spawn"), follow_parent) as pool:
            waiting: deque[Future[np.ndarray]] = deque()
            try:
                for number in numbers:
                    waiting.append(pool.submit(render_states, *self._job(number)))
                    if len(waiting) > 2 * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


class PartialEmbeddings:
    """Rows embedded so far, in `<path>.partial/`: a later run of the same work goes on after the last episode.

    Rows left by other work, and rows that differ from their checksum, are made again; rows that cannot be read for a
    reason of the environment are kept, and BadInput says the reason.

    Args:
        about: config and inputs.
    """

    def __init__(self, path: Path, dataset: Dataset, dim: int, about: Mapping[str, Any]) -> None:
        self.folder, self.dataset = path.parent / f"{path.name}.partial", dataset
        self.about = json.loads(json.dumps(about, default=str))
        self.shape = (dataset.n_frames, dim)
        self._saved = time.monotonic()
        self._hash = hashlib.sha256()  # of the rows so far
        self.episodes = self._resume()
        if not self.episodes:
            self._allocate()
        self._map = self._open()

    def _resume(self) -> int:
        """Episodes that are safe on disk, 0 when they are not this work's or not what was written."""
        try:
            state = json.loads((self.folder / "progress.json").read_text())
            self.episodes = min(int(state["episodes"]), self.dataset.n_episodes)
            rows = self._open()[: self.rows]
            self._hash.update(rows.data)
            if state["about"] == self.about and state["sha256"] == self._hash.hexdigest():
                return self.episodes
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise storage.corrupted(self.folder / "progress.json", error) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        return 0

    def _open(self) -> np.memmap[Any, np.dtype[np.float16]]:
        """The file of all rows, mapped. Raises ValueError when it has another size, FileNotFoundError, or BadInput."""
        file = self.folder / "rows.f16"
        try:
            return np.memmap(file, np.float16, "r+", shape=self.shape)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise storage.corrupted(file, error) from None

    def _allocate(self) -> None:
        """Make the file anew with every block of it reserved: on a full disk, writing to a hole kills the process."""
        storage.remove_folder(self.folder)
        self.folder.mkdir(parents=True)
        self._hash = hashlib.sha256()
        size = 2 * self.shape[0] * self.shape[1]
        with (self.folder / "rows.f16").open("wb") as file:
            for start in range(0, size, BLOCK):
                file.write(bytes(min(BLOCK, size - start)))

    @property
    def rows(self) -> int:
        return int(self.dataset.episode_length[: self.episodes].sum())

    def restart(self) -> None:
        """Forget the rows of an earlier attempt."""
        self.episodes = 0
        self._allocate()
        self._map = self._open()

    def append(self, embeddings: np.ndarray) -> None:
        """The next episode's embeddings (T, dim). Raises BadInput when they are not finite."""
        if not np.isfinite(embeddings).all():
            raise BadInput("the backbone gave embeddings that are not finite; its weights are damaged: get them again")
        start = self.rows
        rows = self._map[start : start + len(embeddings)]
        rows[:] = embeddings
        self._hash.update(rows.data)
        self.episodes += 1
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Make everything appended so far survive a kill."""
        self._map.flush()
        state = {"about": self.about, "episodes": self.episodes, "sha256": self._hash.hexdigest()}
        storage.replace_file(self.folder / "progress.json", lambda draft: draft.write_text(json.dumps(state)))
        self._saved = time.monotonic()

    def blocks(self) -> list[np.ndarray]:
        """The rows (N, dim) float16 of each shard of the dataset."""
        return np.split(np.asarray(self._map), self.dataset.offsets[1:-1])

    def drop(self) -> None:
        storage.remove_folder(self.folder)


# ---------------------------------------------------------------------------- a dataset's embeddings


@dataclass(frozen=True)
class EmbeddingJob:
    """One dataset to embed into the artifact `path`.

    backbone_name, backbone_id: what is recorded of the backbone. inputs: the dataset first, then what the backbone
    comes from. batch: windows a forward pass. command: the command line that goes on after a stop. stride: frames from
    one embedding to the next, see `Backbone.encode_episode`.
    """

    path: Path
    frames: FrameSource
    backbone_name: str
    backbone_id: str
    inputs: Sequence[Artifact]
    batch: int
    command: str
    stride: int = 1

    @property
    def record(self) -> dict[str, Any]:
        """What decides the content beside the inputs."""
        strided = {"stride": self.stride} if self.stride > 1 else {}
        return {"backbone": self.backbone_name, "backbone_id": self.backbone_id, "frames": self.frames.how, **strided}


def compute_embeddings(job: EmbeddingJob, backbone: Backbone, run: Run) -> Artifact:
    """Embed a dataset, going on from a stopped attempt; the caller holds the lock of the job's path.

    Raises Interrupted on a signal, after saving.
    """
    began, dataset, episodes = time.time(), job.frames.dataset, 0
    about = {"config": job.record, "inputs": artifacts.input_ids(job.inputs)}
    with stop_signals() as stop:
        partial = PartialEmbeddings(job.path, dataset, backbone.dim, about)
        if run.fresh:
            partial.restart()
        with progress(dataset.n_frames, partial.rows, f"embed {job.path.name}", "frame", run.quiet) as bar:
            for images in job.frames.episodes(partial.episodes):
                started = time.monotonic()
                partial.append(backbone.encode_episode(images, job.batch, job.stride).cpu().numpy())
                bar.update(len(images))
                episodes += 1
                if episodes == 2 and not run.quiet:  # the first one also warms up
                    left = (dataset.n_frames - partial.rows) / len(images) * (time.monotonic() - started)
                    bar.write(f"embed {job.path.name}: about {left / 3600:.2g} h for {dataset.n_frames} frames")
                if stop:
                    partial.save()
                    raise stop.leave(job.command)
    facts = {"backbone": job.backbone_name, "backbone_id": job.backbone_id, "frame_size": job.frames.size}
    made = write_sidecar(job.path, run, job.inputs, partial.blocks(), job.record, facts, began)
    partial.drop()
    return made


def tuned_embeddings(model: Artifact, data: Sequence[Artifact], run: Run, command: str) -> list[Artifact]:
    """The embeddings of datasets by the backbone as a model tuned it, from the frames the model sees.

    They lie beside the model, in <model>.embeddings/; those that are missing are made, the others verified.

    Args:
        command: the command line that goes on after a stop.
    Raises:
        BadInput: the backbone has gone or changed. Interrupted: stopped by a signal, after saving.
    """
    folder = model.path.parent / f"{model.path.name}.embeddings"
    if any(not _made_from(folder / a.path.name, [a, model]) for a in data):
        name, wanted = model.meta["extra"]["backbone"], model.meta["extra"]["backbone_id"]
        backbone = backbone_of(model, name, run.root, run.device, retrain_command(model, run))
        retune(backbone, model)
        for source in data:
            path = folder / source.path.name
            if not _made_from(path, [source, model]):
                with storage.locked(path):
                    dataset = Dataset.open([source.path], run.domain)
                    frames = FrameSource(dataset, dataset.image_size, workers=1)
                    inputs, tuned = [source, model], f"{wanted}+{model.id}"
                    job = EmbeddingJob(path, frames, name, tuned, inputs, TUNED_BATCH, command)
                    compute_embeddings(job, backbone, run)
    found = [artifacts.load(folder / a.path.name, "embed", domain=run.domain) for a in data]
    artifacts.verify(*found)
    return found


def _made_from(path: Path, inputs: Sequence[Artifact]) -> bool:
    there = artifacts.finished(path, fresh=False)
    return there and artifacts.load(path, "embed").meta["inputs"] == artifacts.input_ids(inputs)


def retrain_command(model: Artifact, run: Run) -> str:
    """The command line that trains a model anew."""
    label = str(model.meta["config"]["method"])
    options = (*method_option(base_method(label)), "--seed", str(model.meta["seed"]), "--fresh")
    source = transfer_source(label)
    if not source:
        return run.command("pretrain", *options)
    if source == CONTROL:  # the same from whichever body
        return run.command("transfer", "--src", next(d for d in PAPER if d != run.domain), "--control", *options)
    return run.command("transfer", "--src", source, *options)


def open_training_data(model: Artifact, run: Run) -> Dataset:
    """The datasets a model was trained on, verified, with the embeddings it reads: by its own backbone where tuned.

    Raises BadInput when one has gone or changed.
    """
    data: list[Artifact] = []
    embeddings: list[Artifact] = []
    for key, wanted in model.meta["inputs"].items():
        kind = key.split(":")[0]
        if kind not in ("collect", "embed"):
            continue  # the model it was carried over from
        found = artifacts.load(artifacts.input_path(model, wanted), kind, domain=run.domain)
        if found.id != wanted:
            raise BadInput(
                f"{found.path} changed since {model.path} was trained on it; run: {retrain_command(model, run)}"
            )
        (data if kind == "collect" else embeddings).append(found)
    artifacts.verify(*data, *embeddings)
    if mllm_of(model).in_loop:
        again = run.command("pretrain", "--seed", str(model.meta["seed"]))
        embeddings = tuned_embeddings(model, data, run, again)
    return Dataset.open([a.path for a in data], run.domain, [a.path for a in embeddings])
