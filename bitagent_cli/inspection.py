"""`bitagent inspect`: what an artifact is, what it was made from, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput, printable

MAX_TENSORS = 40
MAX_DEPTH = 12
MAX_ITEMS = 8
BAR = 40  # characters of the longest bar of a histogram
_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def report(path: Path, verify: bool) -> None:
    """Print everything about the artifact at `path`.

    Raises:
        BadInput: `path` is not an artifact, it is corrupted, or, with `verify`, a checksum differs.
    """
    found = artifacts.load(path)
    if verify:
        artifacts.verify(found)
    for block in (_summary(found, verify), _provenance(found), _files(found), _contents(found), _config(found)):
        for line in block:
            print(printable(line))


def _summary(found: Artifact, verified: bool) -> list[str]:
    meta = found.meta
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
    return [
        f"{found.path}",
        f"  stage      {meta['stage']} ({found.domain}), seed {meta['seed']}",
        f"  id         {found.id}{', every checksum verified' if verified else ''}",
        f"  made       {meta['created']} in {meta['wall_seconds']} s",
        f"  commit     {meta['commit'] or '?'}",
        f"  with       {versions or '?'}",
        f"  schema     {meta['schema']}",
    ]


# ---------------------------------------------------------------------------- provenance


def _provenance(found: Artifact) -> list[str]:
    lines = list(_tree(found, "  ", {found.id}, 0))
    return ["made from", *lines] if lines else ["made from nothing: it starts a run"]


def _tree(found: Artifact, indent: str, seen: set[str], depth: int) -> Iterator[str]:
    """One line per input, inputs of inputs indented below it; each artifact is opened once."""
    places = found.meta["input_paths"]
    for name, wanted in found.meta["inputs"].items():
        wanted = str(wanted)
        where = (found.path / str(places.get(wanted, ""))).resolve()
        if wanted in seen or depth >= MAX_DEPTH:
            yield f"{indent}{name}  {wanted}  (listed above)"
            continue
        seen.add(wanted)
        try:
            parent = artifacts.load(where)
        except BadInput:
            yield f"{indent}{name}  {wanted}  (no longer on disk, was {places.get(wanted, 'at an unknown place')})"
            continue
        state = "" if parent.id == wanted else f"  (rebuilt since: {parent.id} there now)"
        yield f"{indent}{name}  {wanted}  {_near(where)}{state}"
        if not state:
            yield from _tree(parent, indent + "  ", seen, depth + 1)


def _near(path: Path) -> str:
    """Relative to the working directory when below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


# ---------------------------------------------------------------------------- files and tensors


def _files(found: Artifact) -> list[str]:
    """Shapes, dtypes and sizes from the safetensors headers; no tensor is read."""
    lines = ["files"]
    for name in found.meta["files"]:
        file = found.path / name
        lines.append(f"  {name}  {_size(file.stat().st_size)}")
        if name.endswith(".safetensors"):
            lines += [f"    {row}" for row in _tensors(file)]
    return lines


def _tensors(file: Path) -> list[str]:
    rows = []
    with safe_open(str(file), framework="pt") as handle:
        names = sorted(handle.keys())
        for name in names[:MAX_TENSORS]:
            part = handle.get_slice(name)
            shape, dtype = part.get_shape(), part.get_dtype()
            count = 1
            for n in shape:
                count *= n
            rows.append(f"{name:<44} {dtype:<5} {shape!s:<22} {_size(count * _BYTES.get(dtype, 1))}")
    if len(names) > MAX_TENSORS:
        rows.append(f"... and {len(names) - MAX_TENSORS} more tensors")
    return rows


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


# ---------------------------------------------------------------------------- contents and config


def _contents(found: Artifact) -> list[str]:
    if found.meta["stage"] == "collect":
        return _dataset(found)
    return ["facts", *_plain(found.meta["extra"])]


def _dataset(found: Artifact) -> list[str]:
    """Episodes, frames, and a histogram of the returns of each part."""
    from stages.data.episodes import Dataset

    about = Dataset.open([found.path], found.domain).describe()
    parts, edges = about.pop("parts"), about.pop("histogram_edges")
    lines = ["dataset", *_plain(about)]
    for part in parts:
        name = " ".join(word for word in (part["source"], part["task"]) if word)
        lines.append(
            f"  {name}: {part['episodes']} episodes, {part['frames']} frames, return {part['return_min']:.0f} to "
            f"{part['return_max']:.0f}, mean {part['return_mean']:.0f}, median {part['return_median']:.0f}"
        )
        most = max(*part["histogram"], 1)
        for low, high, count in zip(edges, edges[1:], part["histogram"], strict=False):
            lines.append(f"    {low:8.1f} to {high:8.1f}  {count:6d}  {'█' * round(BAR * count / most)}")
    return lines


def _config(found: Artifact) -> list[str]:
    return ["config", *_plain(found.meta["config"])]


def _plain(value: dict[str, Any], indent: str = "  ") -> list[str]:
    """A mapping, one key a line, blocks indented, long lists shortened."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}:", *_plain(item, indent + "  ")]
        elif isinstance(item, list) and len(item) > MAX_ITEMS:
            lines.append(f"{indent}{key}: {json.dumps(item[:MAX_ITEMS])[:-1]}, ... {len(item)} in all]")
        else:
            lines.append(f"{indent}{key}: {item if isinstance(item, str) else json.dumps(item)}")
    return lines or [f"{indent}none"]
