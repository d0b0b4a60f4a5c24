"""Damaged and forged files: what a disk, a hand or an attacker does to an artifact or a preset, by a seed.

A mutation never writes to the original: a `Case` names the file to replace and how it is read afterwards.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime import artifacts, storage

Random = random.Random
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**70), 10**30, 0.5, -0.0, 1e308, math.inf, math.nan, "", "0",
    "../..",
    "/etc/passwd", "\x1b[2J", "\x00", "\ud800", "x" * 5000, [], {}, [[]], {"": {}}, [None], {"a": 1}, ["walk", 3],
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file to damage, and the reading of it that must then be refused or come out unchanged."""

    name: str
    file: Path
    read: Callable[[], object]


@contextmanager
def replaced(file: Path, content: bytes) -> Iterator[None]:
    """The file with another content, for a while. Its original may be linked from elsewhere, so it is moved away."""
    kept = file.with_name(f".{file.name}.sound")
    file.rename(kept)
    try:
        file.write_bytes(content)
        yield
    finally:
        file.unlink(missing_ok=True)
        kept.rename(file)


def restore(root: Path) -> None:
    """Put back what a stop inside `replaced` left moved away."""
    for kept in root.rglob(".*.sound"):
        kept.rename(kept.with_name(kept.name[1:].removesuffix(".sound")))


# ---------------------------------------------------------------------------- bytes


def damage(content: bytes, chance: Random) -> bytes:
    """The same bytes after a fault of a disk or a transfer; never equal to `content`."""
    while (found := chance.choice(FAULTS)(content, chance)) == content:
        pass
    return found


def flip_bits(content: bytes, chance: Random) -> bytes:
    data = bytearray(content)
    head = chance.random() < 0.3  # headers are short: look there often
    for _ in range(chance.choice((1, 1, 1, 2, 8, 64))):
        place = chance.randrange(min(len(data), 4096) if head else len(data))
        data[place] ^= 1 << chance.randrange(8)
    return bytes(data)


def set_byte(content: bytes, chance: Random) -> bytes:
    place = chance.randrange(min(len(content), 4096))
    return content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]


def truncate(content: bytes, chance: Random) -> bytes:
    return content[: chance.choice((0, 1, 7, 8, 9, chance.randrange(len(content)), len(content) - 1))]


def append(content: bytes, chance: Random) -> bytes:
    return content + chance.randbytes(chance.choice((1, 8, 5000)))


def blank(content: bytes, chance: Random) -> bytes:
    """A page or so that was never written."""
    start = chance.randrange(len(content))
    size = min(chance.choice((1, 16, 512, 4096)), len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def move(content: bytes, chance: Random) -> bytes:
    """A piece of the file in another place of it."""
    size = min(chance.choice((1, 16, 512)), len(content) // 2)
    source, target = chance.randrange(len(content) - size + 1), chance.randrange(len(content) - size + 1)
    return content[:target] + content[source : source + size] + content[target + size :]


def claim_length(content: bytes, chance: Random) -> bytes:
    """A safetensors header of an absurd size."""
    return chance.choice((2**64 - 1, 2**63, 2**40, 10**8, len(content), 0, 1)).to_bytes(8, "little") + content[8:]


FAULTS = (flip_bits, flip_bits, set_byte, truncate, append, blank, move, claim_length)


# ---------------------------------------------------------------------------- JSON and headers


def edit_json(value: Any, chance: Random) -> Any:
    """A JSON value with one thing in it changed, removed or added, at a random depth."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = chance.choice(places)
    action = chance.choice(("set", "set", "set", "drop", "add", "near"))
    if action == "drop":
        del node[key]
    elif action == "near" and type(node[key]) in (int, float):
        node[key] = node[key] + chance.choice((-1, 1, 0.001))
    elif action == "add" and isinstance(node, dict):
        node[chance.choice(("", "..", "a/b", "__metadata__", "x" * 300))] = chance.choice(ODD)
    else:
        node[key] = chance.choice(ODD)
    return value


def edit_header(content: bytes, chance: Random) -> bytes:
    """A safetensors file whose header was edited; the length before it is kept right."""
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(edit_json(json.loads(content[8 : 8 + length]), chance)).encode("utf-8", "surrogatepass")
    text = text.ljust(length)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def edited(file: Path, chance: Random) -> bytes:
    """A file as its format's own editor would leave it: other values, no longer what the checksums say."""
    content = file.read_bytes()
    if file.suffix == ".json":
        return json.dumps(edit_json(json.loads(content), chance)).encode()
    if file.suffix == ".safetensors":
        return edit_header(content, chance)
    return damage(content, chance)


def forged(file: Path, chance: Random) -> bytes:
    """An artifact.json edited by someone who also corrected its id and its seal."""
    meta = edit_json(json.loads(file.read_bytes()), chance)
    if isinstance(meta, dict) and all(key in meta for key in artifacts.CONTENT):
        meta = storage.seal(meta | {"id": storage.digest({key: meta[key] for key in artifacts.CONTENT})})
    return json.dumps(meta).encode()


# ---------------------------------------------------------------------------- presets

PRESET = """\
base: walker
collect:
  random_episodes: 3
  expert: {decisions: {default: 3000}, keep_episodes: 4}
embed:
  backbone: offline
model:
  deter: 64
  fusion: tamf
  unimix: 0.01
pretrain:
  lr: 4.0e-4
  bf16: true
  objective: {horizon: 7, mllm: 5.0}
behave:
  space: relative
  actor_critic: {units: 64, discount: 0.99}
scales:
  smoke: {pretrain: {updates: 20}}
"""
SCALARS = (
    "", "~", ".nan", "-.inf", "1e999", "-1", "0", "9" * 400, "0x_", "1:60:1", "2024-13-45", "*a", "&a 1", "<<", "=",
    "!!int ''", "!!bool maybe", "!!timestamp x", "!!float '-'", "!!binary '%'", "!!set {a}",
    "!!python/object/apply:os.system [true]", "[", "]", "{", "}", "[" * 200, "{a: " * 200, '"\\x00"', "'", '"', "|",
    ">", "- a", "? b", ": c", "%YAML 9", "@", "`", "\t", "yes", "no", "null", "walker", "walk" * 500, "\x00", "\ufeff",
    "\x85", "1_000", "1e-4", "1e4", "[1, 2]", "{x: 1}", "1.0.0",
)  # fmt: skip


def mutate_preset(chance: Random) -> bytes:
    """A user's preset after typing mistakes, or on purpose: lines and values moved, odd values, stray bytes."""
    lines = PRESET.splitlines()
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(lines))
        action = chance.choice(("value", "value", "value", "drop", "twice", "indent", "character", "swap"))
        line = lines[place]
        if action == "value":
            lines[place] = f"{line.split(':')[0]}: {chance.choice(SCALARS)}"
        elif action == "drop" and len(lines) > 1:
            del lines[place]
        elif action == "twice":
            lines.insert(place, line)
        elif action == "indent":
            lines[place] = chance.choice(("  ", "\t", "    ")) + line
        elif action == "swap":
            lines[place], lines[0] = lines[0], lines[place]
        else:
            cut = chance.randrange(len(line) + 1)
            lines[place] = (
                line[:cut] + chr(chance.choice((0, 9, 10, 35, 38, 42, 58, 123, 125, 0x2028, 0x1F600))) + line[cut:]
            )
    content = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
    return damage(content, chance) if chance.random() < 0.2 else content
