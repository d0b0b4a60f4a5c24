"""Artifacts: directories of safetensors plus artifact.json, whole or absent, with provenance.

    runs/walker-laptop/model/bitagent-s0/
        artifact.json      schema, stage, config, seed, versions, inputs, sha256 of each file
        model.safetensors

`storage` writes them whole and keeps a second writer out; `checkpoints` is what a stopped training leaves beside them.
What is read back is compared with its checksums first: `load` checks artifact.json, `Artifact.tensors`
the file it loads, `verify` every file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.runtime import checkpoints, storage
from stages.runtime.config import Run
from stages.runtime.errors import BadInput

PACKAGES = ("torch", "numpy", "mujoco", "dm_control", "transformers", "safetensors")
CONTENT = ("stage", "domain", "config", "seed", "inputs", "extra", "files")  # of artifact.json: what the id covers
SCALE = "#scale"  # ends the name of the scale of a tensor in 8 bits
META: dict[str, type] = {
    "id": str, "name": str, "stage": str, "domain": str, "config": dict, "seed": int, "inputs": dict, "extra": dict,
    "files": dict, "input_paths": dict, "resolved": dict, "versions": dict, "commit": str, "wall_seconds": float,
    "created": str,
}  # fmt: skip


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk; `meta` is its artifact.json."""

    path: Path
    meta: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.meta["id"])

    @property
    def domain(self) -> str:
        return str(self.meta["domain"])

    def tensors(self, name: str, device: str = "cpu") -> dict[str, Tensor]:
        """Load `<name>.safetensors` whole. Raises BadInput when it is missing or not what was written."""
        file = self.path / f"{name}.safetensors"
        check_file(self, file.name)
        try:
            return expanded(load_file(str(file), device=device))
        except (SafetensorError, OSError, ValueError) as error:
            raise storage.corrupted(file, error) from None


def expanded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that were stored in 8 bits, with a scale a row beside them (policies/packing.py), as float32."""
    values = {name: value for name, value in tensors.items() if not name.endswith(SCALE)}
    scaled = {name: values[name].float() * tensors[name + SCALE] for name in values if name + SCALE in tensors}
    return values | scaled


def input_ids(inputs: Sequence[Artifact]) -> dict[str, str]:
    """{"<stage>:<name>": id} of the artifacts something is made from, as artifact.json records them."""
    return {f"{a.meta['stage']}:{a.meta['name']}": a.id for a in inputs}


def input_path(artifact: Artifact, wanted: str) -> Path:
    """Where the input of this id lay when `artifact` was made. Raises BadInput when artifact.json does not say."""
    places: dict[str, str] = artifact.meta["input_paths"]
    if wanted not in places:
        reason = ValueError(f"it does not say where its input {wanted} is")
        raise storage.corrupted(artifact.path / "artifact.json", reason)
    return artifact.path / places[wanted]


@dataclass(frozen=True)
class Provenance:
    """What an artifact.json says of how its artifact was made.

    Args:
        config: the sections that decide the content; `reuse` compares them.
        inputs: the artifacts this one was made from.
        resolved: the whole resolved preset, for the record.
        began: when its making began, in seconds since the epoch; by default now.
    """

    domain: str
    config: Mapping[str, Any]
    seed: int
    inputs: Sequence[Artifact] = ()
    resolved: Mapping[str, Any] | None = None
    began: float | None = None


@contextmanager
def writing(path: Path, stage: str, *, extra: dict[str, Any] | None = None, **about: Any) -> Iterator[Path]:
    """Yield a temporary folder to fill with files; on a clean exit it becomes the artifact `path`.

    Args:
        extra: stage-specific facts; the caller may fill it inside the `with`.
        about: the fields of `Provenance`.
    """
    made = Provenance(**about)
    began = time.time() if made.began is None else made.began
    with storage.draft(path) as draft:
        yield draft
        files = {f.name: storage.file_sha256(f) for f in sorted(draft.iterdir()) if f.is_file()}
        content = storage.plain({
            "stage": stage, "domain": made.domain, "config": dict(made.config), "seed": made.seed,
            "inputs": input_ids(made.inputs), "extra": extra or {}, "files": files,
        })  # fmt: skip
        meta = {
            "schema": storage.SCHEMA,
            "id": storage.digest(content),
            "name": path.name,
            **content,
            "input_paths": {a.id: os.path.relpath(a.path.resolve(), path.resolve()) for a in made.inputs},
            "resolved": dict(made.resolved or {}),
            "versions": versions(),
            "commit": git_commit(),
            "wall_seconds": round(time.time() - began, 1),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        (draft / "artifact.json").write_text(json.dumps(storage.seal(meta), indent=1) + "\n")
        storage.replace_folder(draft, path)
        _rebuilding(path).unlink(missing_ok=True)


def save(path: Path, stage: str, tensors: Mapping[str, Mapping[str, Tensor]], **about: Any) -> Artifact:
    """Write an artifact of small tensor files {file stem: {name: tensor}}; see `writing`."""
    with writing(path, stage, **about) as draft:
        for name, group in tensors.items():
            storage.write_tensors(draft / f"{name}.safetensors", group)
    return load(path, stage)


@dataclass(frozen=True)
class Recipe:
    """An artifact that a stage makes in a run: its place, and the `config` and `inputs` that decide its content."""

    run: Run
    path: Path
    stage: str
    config: Mapping[str, Any]
    inputs: Sequence[Artifact] = ()
    began: float = field(default_factory=time.time)

    @property
    def about(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        return {**self.config, "seed": self.run.seed, "inputs": input_ids(self.inputs)}

    def reuse(self) -> Artifact | None:
        """The finished artifact, saying so, or None; see `reuse`."""
        run = self.run
        found = reuse(self.path, self.stage, self.config, run.seed, self.inputs, run.fresh, run.renew)
        if found and not run.quiet:
            print(f"reusing {self.path}")
        return found

    @property
    def provenance(self) -> dict[str, Any]:
        """The fields of `Provenance`."""
        made = {"config": self.config, "inputs": self.inputs, "began": self.began}
        return {"domain": self.run.domain, "seed": self.run.seed, "resolved": self.run.resolved, **made}

    def writing(self, extra: dict[str, Any] | None = None) -> AbstractContextManager[Path]:
        """See `writing`."""
        return writing(self.path, self.stage, extra=extra, **self.provenance)

    def save(self, tensors: Mapping[str, Mapping[str, Tensor]], extra: dict[str, Any] | None = None) -> Artifact:
        """Write the artifact of these tensor files; the checkpoint of its training, if there was one, goes."""
        made = save(self.path, self.stage, tensors, extra=extra, **self.provenance)
        checkpoints.drop(self.path)
        return made


def load(path: Path, stage: str | None = None, *, domain: str | None = None, made_by: str = "") -> Artifact:
    """Open an artifact, checking its schema, stage, domain, file list and safetensors headers.

    Raises:
        BadInput: missing (names `made_by`, the command that makes it), corrupted, of a newer
            schema, of another stage or of another domain.
    """
    storage.recover(path)
    file = path / "artifact.json"
    if not file.exists():
        raise BadInput(f"{path} does not exist; make it with: {made_by}" if made_by else f"{path} is not an artifact")
    meta = _read_meta(file)
    found_stage, found_domain = meta["stage"], meta["domain"]
    if stage is not None and found_stage != stage:
        raise BadInput(f"{path} is a {found_stage} artifact, not {stage}; give the path of a {stage} artifact")
    if domain is not None and found_domain != domain:
        way = f"use --preset {found_domain} or another path"
        raise BadInput(f"{path} belongs to domain {found_domain}, not {domain}; {way}")
    for name in meta["files"]:
        storage.check_name(path, name)
        if name.endswith(".safetensors"):
            _check_header(path / name)
    return Artifact(path, meta)


def find(root: Path, pattern: str, stage: str | None = None, *, domain: str | None = None) -> list[Artifact]:
    """Every finished artifact at `pattern` below `root`, in the order of their paths; see `load`.

    Two folders with one id are one artifact, a backup copy beside it: the one under its own name counts.
    """
    places = [file.parent for file in sorted(root.glob(f"{pattern}/artifact.json"))]
    hidden = [any(part.startswith(".") for part in place.relative_to(root).parts) for place in places]
    found: dict[str, Artifact] = {}
    for place, hide in zip(places, hidden, strict=True):
        if not hide and ((one := load(place, stage, domain=domain)).id not in found or place.name == one.meta["name"]):
            found[one.id] = one
    return list(found.values())


def _read_meta(file: Path) -> dict[str, Any]:
    """artifact.json, when it is of a known schema and unchanged since it was written."""
    meta = storage.read_json(file)
    if "seal" in meta and storage.seal(meta) != meta:
        raise storage.corrupted(file, ValueError("its content does not match its seal: it was edited or damaged"))
    for key, kind in META.items():
        if type(meta.get(key)) is not kind:
            raise storage.corrupted(file, ValueError(f"it has no sound {key!r}"))
    if not all(type(place) is str for place in meta["input_paths"].values()):
        raise storage.corrupted(file, ValueError("it has no sound 'input_paths'"))
    if storage.digest({key: meta[key] for key in CONTENT}) != meta["id"]:
        raise storage.corrupted(file, ValueError("its content does not match its id: it was edited or damaged"))
    return meta


def _check_header(file: Path) -> None:
    try:
        with safe_open(str(file), framework="pt") as handle:
            handle.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise storage.corrupted(file, error) from None


def check_file(artifact: Artifact, name: str) -> None:
    """Compare one file with its checksum. Raises BadInput when it differs or is not listed."""
    wanted = artifact.meta["files"].get(name)
    if wanted is None:
        raise storage.corrupted(artifact.path / name, ValueError("not listed in artifact.json"))
    try:
        found = storage.file_sha256(artifact.path / name)
    except OSError as error:
        raise storage.corrupted(artifact.path / name, error) from None
    if found != wanted:
        raise storage.corrupted(artifact.path / name, ValueError("checksum differs from artifact.json"))


def verify(*found: Artifact) -> None:
    """Recompute every checksum, as `load` did every id. Raises BadInput naming a file that differs.

    hashlib works outside the interpreter's lock: the threads share the files of all artifacts, so that all cores work
    to the end.
    """
    files = [(artifact, name) for artifact in found for name in artifact.meta["files"]]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda file: check_file(*file), files))


def _rebuilding(path: Path) -> Path:
    """There while `--fresh` replaces the artifact at `path`: what was finished before is not reused."""
    return path.parent / f".{path.name}.fresh"


def finished(path: Path, fresh: bool) -> bool:
    """Whether a finished artifact is at `path` and neither `fresh` nor a stopped rebuild asks for a new one."""
    storage.recover(path)
    if fresh and path.exists():
        _rebuilding(path).touch()
    return path.exists() and not _rebuilding(path).exists()


def reuse(
    path: Path,
    stage: str,
    config: Mapping[str, Any],
    seed: int,
    inputs: Sequence[Artifact],
    fresh: bool,
    renew: bool = False,
) -> Artifact | None:
    """The finished artifact at `path` if it was made the same way; None when there is none or `fresh`.

    Args:
        renew: None, too, when only the content of the same inputs has changed since.
    Raises:
        BadInput: it exists but its config, seed or inputs differ: names the first difference.
    """
    if not finished(path, fresh):
        return None
    found = load(path, stage)
    wanted = storage.plain({"config": dict(config), "seed": seed, "inputs": input_ids(inputs)})
    for key, value in wanted.items():
        if found.meta[key] != value:
            if renew and key == "inputs" and found.meta[key].keys() == value.keys():
                return None
            where = first_difference(found.meta[key], value, key)
            raise BadInput(f"{path} exists with another {where}; rebuild it with --fresh, or choose another --out")
    return current(found)


def current(found: Artifact) -> Artifact:
    """Date an artifact that need not be made again, so that for make it is newer than what it was made from."""
    with suppress(OSError):  # someone else's, or read-only: it stays as old as it is
        os.utime(found.path / "artifact.json")
    return found


def first_difference(old: Any, new: Any, where: str) -> str:
    """'config.pretrain.lr (0.001 there, 0.01 now)': the first key, in order, under which two trees differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{where}.{key}")
    return f"{where} ({old} there, {new} now)"


# ---------------------------------------------------------------------------- rebuilding


@contextmanager
def rebuilding(artifact: Artifact) -> Iterator[None]:
    """Around building what artifact.json describes. Raises BadInput when it describes nothing that can be built."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise storage.corrupted(artifact.path / "artifact.json", error) from None


def require_fit(tensors: Mapping[str, Tensor], sizes: Iterable[Any], layers: int = 0) -> None:
    """Refuse, before anything is built, sizes that its weights cannot have: they could take all memory.

    Args:
        sizes: values that are no int are passed over.
    Raises ValueError.
    """
    largest = max(size for size in sizes if type(size) is int)
    if largest > sum(t.numel() for t in tensors.values()) or layers > len(tensors):
        raise ValueError("a size is larger than all its weights")


def load_weights(module: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Strict load_state_dict. Raises BadInput naming the first key or shape that does not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = f"({str(error).splitlines()[1].strip()}); make it again with --fresh"
        raise BadInput(f"the weights in {where} do not fit its configuration {reason}") from None


# ---------------------------------------------------------------------------- provenance


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | {"hardware": hardware()}


def hardware() -> str:
    """The GPU's name, or the processor's and its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def git_commit() -> str:
    """The commit of the code that runs, with '-dirty' for uncommitted changes; '' outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
