"""Artifacts: directories of safetensors plus artifact.json, whole or absent, with provenance.

    runs/walker-laptop/model/bitagent-s0/
        artifact.json      schema, stage, config, seed, versions, inputs, sha256 of each file
        model.safetensors

Writing happens in a hidden sibling that is fsynced and renamed into place; a `.lock` beside the
artifact keeps a second writer out. Checkpoints are the same thing under `<artifact>.checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.core.errors import BadInput

SCHEMA = 1
PACKAGES = ("torch", "numpy", "mujoco", "dm_control", "transformers", "safetensors")
MAX_JSON_BYTES = 16 * 2**20


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
        """Load `<name>.safetensors` whole. Raises BadInput when it is missing or corrupted."""
        file = self.path / f"{name}.safetensors"
        try:
            return load_file(str(file), device=device)
        except (SafetensorError, OSError, ValueError) as error:
            raise corrupted(file, error) from None


def corrupted(file: Path, error: Exception) -> BadInput:
    return BadInput(
        f"{file} is missing or corrupted ({str(error).splitlines()[0]}); "
        "delete its folder and run the command that made it again (--fresh)"
    )


def input_ids(inputs: Sequence[Artifact]) -> dict[str, str]:
    """{"<stage>:<name>": id} of the artifacts something is made from, as artifact.json records them."""
    return {f"{a.meta['stage']}:{a.meta['name']}": a.id for a in inputs}


def digest(value: Any) -> str:
    """Short stable hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the writer's lock of one artifact. Raises BadInput when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path.parent / f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(f"another process is writing {path}; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(
    path: Path,
    stage: str,
    *,
    domain: str,
    config: Mapping[str, Any],
    seed: int,
    inputs: Sequence[Artifact] = (),
    resolved: Mapping[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    began: float | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder to fill with files; on a clean exit it becomes the artifact `path`.

    Args:
        config: the sections that decide the content; `reuse` compares them.
        inputs: the artifacts this one was made from.
        resolved: the whole resolved preset, for the record.
        extra: stage-specific facts; the caller may fill it inside the `with`.
    """
    began = time.time() if began is None else began
    draft = path.parent / f".{path.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        files = {f.name: file_sha256(f) for f in sorted(draft.iterdir()) if f.is_file()}
        content = {
            "stage": stage,
            "domain": domain,
            "config": dict(config),
            "seed": seed,
            "inputs": input_ids(inputs),
            "extra": extra or {},
            "files": files,
        }
        meta = {
            "schema": SCHEMA,
            "id": digest(content),
            "name": path.name,
            **content,
            "input_paths": {a.id: os.path.relpath(a.path, path) for a in inputs},
            "resolved": dict(resolved or {}),
            "versions": versions(),
            "commit": git_commit(),
            "wall_seconds": round(time.time() - began, 1),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        (draft / "artifact.json").write_text(json.dumps(meta, indent=1, default=str) + "\n")
        replace_folder(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def save(path: Path, stage: str, tensors: Mapping[str, Mapping[str, Tensor]], **about: Any) -> Artifact:
    """Write an artifact of small tensor files {file stem: {name: tensor}}; see `writing`."""
    with writing(path, stage, **about) as draft:
        for name, group in tensors.items():
            write_tensors(draft / f"{name}.safetensors", group)
    return load(path, stage)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(file), metadata=metadata)


def replace_folder(draft: Path, path: Path) -> None:
    """fsync everything in `draft`, then rename it to `path`, replacing what is there."""
    for file in draft.rglob("*"):
        if file.is_file():
            _fsync(file)
    _fsync(draft)
    old = path.parent / f".{path.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    _fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(path: Path) -> None:
    """A kill between the two renames of `replace_folder` leaves only `.old`: put it back."""
    old = path.parent / f".{path.name}.old"
    if old.exists() and not path.exists():
        old.rename(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path, stage: str | None = None, *, domain: str | None = None, made_by: str = "") -> Artifact:
    """Open an artifact, checking its schema, stage, domain, file list and safetensors headers.

    Raises:
        BadInput: missing (names `made_by`, the command that makes it), corrupted, of a newer
            schema, of another stage or of another domain.
    """
    _recover(path)
    file = path / "artifact.json"
    if not file.exists():
        raise BadInput(f"{path} does not exist; make it with: {made_by}" if made_by else f"{path} is not an artifact")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise corrupted(file, ValueError("artifact.json is larger than 16 MiB"))
    try:
        meta = json.loads(file.read_text())
        schema, files = int(meta["schema"]), dict(meta["files"])
        found_stage, found_domain = str(meta["stage"]), str(meta["domain"])
        str(meta["id"]), dict(meta["config"]), dict(meta["extra"]), int(meta["seed"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise corrupted(file, error) from None
    if schema > SCHEMA:
        raise BadInput(
            f"{path} was written by a newer BiTAgent (schema {schema}, this one reads {SCHEMA}); update BiTAgent"
        )
    if stage is not None and found_stage != stage:
        raise BadInput(f"{path} is a {found_stage} artifact, not {stage}; give the path of a {stage} artifact")
    if domain is not None and found_domain != domain:
        raise BadInput(
            f"{path} belongs to domain {found_domain}, not {domain}; use --preset {found_domain} or another path"
        )
    for name in files:
        if "/" in name or name.startswith(".") or not (path / name).is_file():
            raise corrupted(path / name, ValueError("listed in artifact.json, not on disk"))
        if name.endswith(".safetensors"):
            _check_header(path / name)
    return Artifact(path, meta)


def _check_header(file: Path) -> None:
    try:
        with safe_open(str(file), framework="pt") as handle:
            handle.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise corrupted(file, error) from None


def verify(artifact: Artifact) -> None:
    """Recompute every checksum and the id. Raises BadInput naming the first file that differs."""
    for name, wanted in artifact.meta["files"].items():
        if file_sha256(artifact.path / name) != wanted:
            raise corrupted(artifact.path / name, ValueError("checksum differs from artifact.json"))
    keys = ("stage", "domain", "config", "seed", "inputs", "extra", "files")
    if digest({k: artifact.meta[k] for k in keys}) != artifact.id:
        raise corrupted(artifact.path / "artifact.json", ValueError("its content does not match its id"))


def reuse(
    path: Path, stage: str, config: Mapping[str, Any], seed: int, inputs: Sequence[Artifact], fresh: bool
) -> Artifact | None:
    """The finished artifact at `path` if it was made the same way; None when there is none or `fresh`.

    Raises:
        BadInput: it exists but its config, seed or inputs differ: names the first difference.
    """
    _recover(path)
    if fresh or not path.exists():
        return None
    found = load(path, stage)
    wanted = {"config": dict(config), "seed": seed, "inputs": input_ids(inputs)}
    wanted = json.loads(json.dumps(wanted, default=str))
    for key, value in wanted.items():
        if found.meta[key] != value:
            where = _first_difference(found.meta[key], value, key)
            raise BadInput(f"{path} exists with another {where}; rebuild it with --fresh, or choose another --out")
    return found


def _first_difference(old: Any, new: Any, where: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{where}.{key}")
    return f"{where} ({old} there, {new} now)"


# ---------------------------------------------------------------------------- checkpoints


def checkpoint_path(path: Path) -> Path:
    return path.parent / f"{path.name}.checkpoint"


def save_checkpoint(
    path: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]
) -> None:
    """Replace the checkpoint of artifact `path` atomically. `about` must name config and inputs."""
    target = checkpoint_path(path)
    draft = target.parent / f".{target.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, group in tensors.items():
        write_tensors(draft / f"{name}.safetensors", group)
    state = {
        "schema": SCHEMA,
        "step": step,
        "about": about,
        "files": {f.name: file_sha256(f) for f in sorted(draft.iterdir())},
    }
    (draft / "checkpoint.json").write_text(json.dumps(state, default=str))
    replace_folder(draft, target)


def load_checkpoint(path: Path, about: Mapping[str, Any]) -> tuple[int, dict[str, dict[str, Tensor]]] | None:
    """The checkpoint of artifact `path` when it was made with the same `about`, else None.

    A checkpoint that does not verify is refused (BadInput) rather than silently dropped.
    """
    target = checkpoint_path(path)
    _recover(target)
    file = target / "checkpoint.json"
    if not file.exists():
        return None
    try:
        state = json.loads(file.read_text())
        files, step = dict(state["files"]), int(state["step"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise corrupted(file, error) from None
    if state["about"] != json.loads(json.dumps(about, default=str)):
        return None
    tensors = {}
    for name, wanted in files.items():
        if not (target / name).is_file() or file_sha256(target / name) != wanted:
            raise corrupted(target / name, ValueError("checksum differs"))
        tensors[name.removesuffix(".safetensors")] = load_file(str(target / name))
    return step, tensors


def drop_checkpoint(path: Path) -> None:
    shutil.rmtree(checkpoint_path(path), ignore_errors=True)


# ---------------------------------------------------------------------------- provenance


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """The commit of the code that runs, with '-dirty' for uncommitted changes; '' outside git."""
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def rng_state() -> dict[str, Tensor]:
    """PyTorch's random state (CPU, and CUDA where present), for bit-exact resumption."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
