"""What artifacts were made from: their inputs, the inputs of those, and so on, as far as all that is still on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput


@dataclass
class Node:
    """An artifact in the tree: `<stage>:<name>`, the id that was read, its folder, and what lies there now.

    `state` is '' as recorded, 'above' when the tree has it already, 'changed' or 'gone' when the folder holds
    something else or nothing now.
    """

    name: str
    id: str
    path: str
    state: str = ""
    artifact: Artifact | None = None
    inputs: list[Node] = field(default_factory=list)


def provenance(made: Sequence[Artifact], base: Path) -> list[Node]:
    """What the given artifacts were made from, down to the datasets; paths are shown as seen from `base`."""
    seen: set[str] = set()
    return [_node(f"{a.meta['stage']}:{a.meta['name']}", a.id, a.path, base, seen) for a in made]


def _node(name: str, wanted: str, path: Path, base: Path, seen: set[str]) -> Node:
    node = Node(name, wanted, os.path.relpath(path.resolve(), base.resolve()))
    if wanted in seen:
        node.state = "above"
        return node
    seen.add(wanted)
    try:
        node.artifact = artifacts.load(path)
    except BadInput:
        node.state = "gone"
        return node
    if node.artifact.id != wanted:
        node.state = "changed"
        return node
    places = node.artifact.meta["input_paths"]
    for key, read in node.artifact.meta["inputs"].items():
        where = path / places.get(str(read), "?")  # where artifact.json does not say, there is nothing
        node.inputs.append(_node(key, str(read), where, base, seen))
    return node


def still_there(nodes: Sequence[Node]) -> Iterator[Artifact]:
    """Every artifact of a tree that is still what was read, each once."""
    for node in nodes:
        if node.artifact is not None and not node.state:
            yield node.artifact
        yield from still_there(node.inputs)
