"""Artifacts: directories of safetensors plus artifact.json, whole or absent, with provenance.

    runs/walker-laptop/model/bitagent-s0/
        artifact.json      schema, stage, config, seed, versions, inputs, sha256 of each file
        model.safetensors

Writing happens in a hidden sibling that is fsynced and renamed into place; a `.lock` beside the
artifact keeps a second writer out. Checkpoints are the same thing under `<artifact>.checkpoint`.
What is read back is compared with its checksums first: `load` checks artifact.json, `Artifact.tensors`
the file it loads, `verify` every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
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
CONTENT = ("stage", "domain", "config", "seed", "inputs", "extra", "files")  # of artifact.json: what the id covers
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


def input_path(artifact: Artifact, wanted: str) -> Path:
    """Where the input of this id lay when `artifact` was made. Raises BadInput when artifact.json does not say."""
    places: dict[str, str] = artifact.meta["input_paths"]
    if wanted not in places:
        raise corrupted(artifact.path / "artifact.json", ValueError(f"it does not say where its input {wanted} is"))
    return artifact.path / places[wanted]


def digest(value: Any) -> str:
    """Short stable hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_held: set[Path] = set()  # artifacts whose lock this process has


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the writer's lock of one artifact. Raises BadInput when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path.parent / f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(f"another process is writing {path}; wait for it, or choose another --out") from None
    _held.add(path.resolve())
    try:
        yield
    finally:
        _held.discard(path.resolve())
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
    with _draft(path) as draft:
        yield draft
        files = {f.name: file_sha256(f) for f in sorted(draft.iterdir()) if f.is_file()}
        content = plain(
            {
                "stage": stage,
                "domain": domain,
                "config": dict(config),
                "seed": seed,
                "inputs": input_ids(inputs),
                "extra": extra or {},
                "files": files,
            }
        )
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
        (draft / "artifact.json").write_text(json.dumps(seal(meta), indent=1) + "\n")
        replace_folder(draft, path)
        _rebuilding(path).unlink(missing_ok=True)


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """An empty hidden sibling of `path`; dropped on any failure, so that a full disk is not left fuller."""
    draft = path.parent / f".{path.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def seal(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` with the digest of all of it, which an edit by hand does not survive."""
    sealed: dict[str, Any] = plain({k: v for k, v in meta.items() if k != "seal"})
    return sealed | {"seal": digest(sealed)}


def plain(value: Any) -> Any:
    """`value` as it comes back from JSON: lists for tuples, words for keys and paths."""
    return json.loads(json.dumps(value, default=str))


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
            fsync(file)
    fsync(draft)
    old = path.parent / f".{path.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: `write` fills a hidden sibling, which is fsynced and renamed into place."""
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write(draft)
        fsync(draft)
        draft.rename(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync(file.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, in one step: a kill leaves it whole or leaves a hidden remainder."""
    gone = path.parent / f".{path.name}.gone"
    shutil.rmtree(gone, ignore_errors=True)
    if path.exists():
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _recover(path: Path) -> None:
    """A kill between the two renames of `replace_folder` leaves only `.old`: put it back.

    Not while another process writes there: it is about to put something newer in place.
    """
    old = path.parent / f".{path.name}.old"
    if path.exists() or not old.exists():
        return
    try:
        with nullcontext() if path.resolve() in _held else locked(path):
            if old.exists() and not path.exists():
                old.rename(path)
    except BadInput:
        return


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut."""
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
    meta = _read_meta(file)
    found_stage, found_domain = meta["stage"], meta["domain"]
    if stage is not None and found_stage != stage:
        raise BadInput(f"{path} is a {found_stage} artifact, not {stage}; give the path of a {stage} artifact")
    if domain is not None and found_domain != domain:
        raise BadInput(
            f"{path} belongs to domain {found_domain}, not {domain}; use --preset {found_domain} or another path"
        )
    for name in meta["files"]:
        _check_name(path, name)
        if name.endswith(".safetensors"):
            _check_header(path / name)
    return Artifact(path, meta)


def _read_meta(file: Path) -> dict[str, Any]:
    """artifact.json, when it is of a known schema and unchanged since it was written."""
    meta = _read_json(file)
    if "seal" in meta and seal(meta) != meta:
        raise corrupted(file, ValueError("its content does not match its seal: it was edited or damaged"))
    for key, kind in META.items():
        if type(meta.get(key)) is not kind:
            raise corrupted(file, ValueError(f"it has no sound {key!r}"))
    if not all(type(place) is str for place in meta["input_paths"].values()):
        raise corrupted(file, ValueError("it has no sound 'input_paths'"))
    if digest({key: meta[key] for key in CONTENT}) != meta["id"]:
        raise corrupted(file, ValueError("its content does not match its id: it was edited or damaged"))
    return meta


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object of bounded size and known schema. Raises BadInput for anything else."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("it is larger than 16 MiB")
        meta = json.loads(file.read_text())
        if not isinstance(meta, dict) or type(meta.get("schema")) is not int or meta["schema"] < 1:
            raise ValueError("it names no schema")
    except (ValueError, OSError, RecursionError) as error:
        raise corrupted(file, error) from None
    if meta["schema"] > SCHEMA:
        raise BadInput(
            f"{file.parent} was written by a newer BiTAgent (schema {meta['schema']}, this one reads {SCHEMA}); "
            "update BiTAgent"
        )
    return meta


def _check_name(folder: Path, name: str) -> None:
    """Refuse a listed file that is absent or lies elsewhere."""
    try:
        inside = "/" not in name and not name.startswith(".") and (folder / name).is_file()
    except (OSError, ValueError):  # a name no file system takes
        inside = False
    if not inside:
        raise corrupted(folder / name[:100], ValueError("listed in its folder's JSON, not on disk"))


def _check_header(file: Path) -> None:
    try:
        with safe_open(str(file), framework="pt") as handle:
            handle.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise corrupted(file, error) from None


def check_file(artifact: Artifact, name: str) -> None:
    """Compare one file with its checksum. Raises BadInput when it differs or is not listed."""
    wanted = artifact.meta["files"].get(name)
    if wanted is None:
        raise corrupted(artifact.path / name, ValueError("not listed in artifact.json"))
    try:
        found = file_sha256(artifact.path / name)
    except OSError as error:
        raise corrupted(artifact.path / name, error) from None
    if found != wanted:
        raise corrupted(artifact.path / name, ValueError("checksum differs from artifact.json"))


def verify(artifact: Artifact) -> None:
    """Recompute every checksum and the id. Raises BadInput naming the first file that differs."""
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda name: check_file(artifact, name), artifact.meta["files"]):
            pass
    if digest({k: artifact.meta[k] for k in CONTENT}) != artifact.id:
        raise corrupted(artifact.path / "artifact.json", ValueError("its content does not match its id"))


def _rebuilding(path: Path) -> Path:
    """There while `--fresh` replaces the artifact at `path`: what was finished before is not reused."""
    return path.parent / f".{path.name}.fresh"


def finished(path: Path, fresh: bool) -> bool:
    """Whether a finished artifact is at `path` and neither `fresh` nor a stopped rebuild asks for a new one."""
    _recover(path)
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
    wanted = plain({"config": dict(config), "seed": seed, "inputs": input_ids(inputs)})
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


# ---------------------------------------------------------------------------- checkpoints


def checkpoint_path(path: Path) -> Path:
    return path.parent / f"{path.name}.checkpoint"


def save_checkpoint(
    path: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]
) -> None:
    """Replace the checkpoint of artifact `path` atomically. `about` must name config and inputs."""
    target = checkpoint_path(path)
    with _draft(target) as draft:
        for name, group in tensors.items():
            write_tensors(draft / f"{name}.safetensors", group)
        files = {f.name: file_sha256(f) for f in sorted(draft.iterdir())}
        state = {"schema": SCHEMA, "step": step, "about": about, "files": files}
        (draft / "checkpoint.json").write_text(json.dumps(seal(state)))
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
    state = _read_json(file)
    if seal(state) != state:
        raise corrupted(file, ValueError("its content does not match its seal: it was edited or damaged"))
    if state["about"] != plain(about):
        return None
    tensors = {}
    for name, wanted in state["files"].items():
        _check_name(target, name)
        if file_sha256(target / name) != wanted:
            raise corrupted(target / name, ValueError("checksum differs"))
        tensors[name.removesuffix(".safetensors")] = load_file(str(target / name))
    return int(state["step"]), tensors


def drop_checkpoint(path: Path) -> None:
    remove_folder(checkpoint_path(path))


# ---------------------------------------------------------------------------- rebuilding


@contextmanager
def rebuilding(artifact: Artifact) -> Iterator[None]:
    """Around building what artifact.json describes. Raises BadInput when it describes nothing that can be built."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise corrupted(artifact.path / "artifact.json", error) from None


def require_fit(tensors: Mapping[str, Tensor], sizes: Iterable[Any], layers: int = 0) -> None:
    """Refuse, before anything is built, sizes that its weights cannot have: they could take all memory.

    Args:
        sizes: values that are no int are passed over.
    Raises ValueError.
    """
    largest = max(size for size in sizes if type(size) is int)
    if largest > sum(t.numel() for t in tensors.values()) or layers > len(tensors):
        raise ValueError("a size is larger than all its weights")


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
