"""`bitagent inspect`: what an artifact is, what it was made from, and what it holds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from stages.report.lineage import Node, provenance
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import printable

MAX_TENSORS = 40
MAX_ITEMS = 8
BAR = 40  # characters of the longest bar of a histogram


def print_artifact(path: Path, verify: bool) -> None:
    """Print everything about the artifact at `path`.

    Raises:
        BadInput: `path` is not an artifact, it is corrupted, or, with `verify`, a checksum differs.
    """
    found = artifacts.load(path)
    if verify:
        artifacts.verify(found)
    config = ["config", *_plain(found.meta["config"])]
    lines = [*_summary(found, verify), *_input_tree(found), *_files(found), *_contents(found), *config]
    for line in lines:
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


def _input_tree(found: Artifact) -> list[str]:
    (root,) = provenance([found], Path.cwd())
    lines = list(_tree(root, "  "))
    return ["made from", *lines] if lines else ["made from nothing: it starts a run"]


def _tree(node: Node, indent: str) -> Iterator[str]:
    """One line per input, inputs of inputs indented below it."""
    for child in node.inputs:
        where = child.path
        if child.artifact is not None and child.state:
            where += f"  (rebuilt since: {child.artifact.id} there now)"
        elif child.state:
            where = "(listed above)" if child.state == "above" else f"(no longer on disk, was {where})"
        yield f"{indent}{child.name}  {child.id}  {where}"
        yield from _tree(child, indent + "  ")


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
            bits = re.search(r"\d+", dtype)  # of F32, BF16, I64, ...; BOOL has a byte
            size = math.prod(shape) * (int(bits[0]) // 8 if bits else 1)
            rows.append(f"{name:<44} {dtype:<5} {shape!s:<22} {_size(size)}")
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


# ---------------------------------------------------------------------------- contents


def _contents(found: Artifact) -> list[str]:
    """What a stage wrote down; of a dataset episodes, frames, and a histogram of the returns of each part."""
    if found.meta["stage"] != "collect":
        return ["facts", *_plain(found.meta["extra"])]
    from stages.data.episodes import Dataset

    about = Dataset.open([found.path], found.domain).describe()
    parts, edges = about.pop("parts"), about.pop("histogram_edges")
    lines = ["dataset", *_plain(about)]
    for part in parts:
        name = " ".join(word for word in (part["source"], part["task"]) if word)
        if part["cut_from"]:
            names = ", ".join(part["cut_from"])
            lines.append(f"  {name}: {part['episodes']} stretches cut from {names}, {part['frames']} frames, no reward")
            continue
        lines.append(
            f"  {name}: {part['episodes']} episodes, {part['frames']} frames, return {part['return_min']:.0f} to "
            f"{part['return_max']:.0f}, mean {part['return_mean']:.0f}, median {part['return_median']:.0f}"
        )
        most = max(*part["histogram"], 1)
        for low, high, count in zip(edges, edges[1:], part["histogram"], strict=False):
            lines.append(f"    {low:8.1f} to {high:8.1f}  {count:6d}  {'█' * round(BAR * count / most)}")
    return lines


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
