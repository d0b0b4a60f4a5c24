"""Who may import whom: the rooms of stages/, the stages, and the command line (README, "The code")."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS: dict[str, set[str]] = {
    "runtime": set(),
    "core": {"runtime"},
    "worlds": {"runtime"},
    "data": {"runtime", "worlds"},
    "backbones": {"runtime", "worlds", "data"},
    "methods": {"runtime", "core", "data", "backbones"},
    "agents": {"runtime", "core", "worlds", "data", "methods"},
    "policies": {"runtime", "core", "worlds", "backbones", "methods"},
    "report": {"runtime", "core", "worlds", "data", "backbones", "methods", "policies"},
}
DOORS = ("bitagent_cli", "bitagent")  # what users call: they import everything, and nothing imports them
STAGE_TO_STAGE = {("transfer", "pretrain")}


def modules(root: Path) -> dict[str, Path]:
    """{dotted name: file} of the product's modules below a checkout."""
    files = [f for top in ("stages", "bitagent_cli", "bitagent") for f in sorted((root / top).rglob("*.py"))]
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The product's modules that a file imports, anywhere in it: inside functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{a.name}" for a in node.names}
            found |= (inner & known.keys()) | ({node.module} & known.keys() if not inner <= known.keys() else set())
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names} & known.keys()
    return found


def forbidden(importer: str, imported: str) -> bool:
    """Whether one module of the product may not import another."""
    here, there = importer.split("."), imported.split(".")
    if there[0] in DOORS or here[0] in DOORS:
        return there[0] in DOORS and here[0] != there[0]
    if len(there) < 2:
        return False
    if len(here) > 1 and here[1] in ROOMS:
        return there[1] != here[1] and there[1] not in ROOMS[here[1]]
    return there[1] not in ROOMS and (here[1], there[1]) not in STAGE_TO_STAGE


def broken_rules(root: Path) -> list[str]:
    """'importer imports imported' for every forbidden import below a checkout, and every circle of imports."""
    known = modules(root)
    graph = {name: imports(file, known) - {name} for name, file in known.items()}
    found = [f"{a} imports {b}" for a, many in graph.items() for b in sorted(many) if forbidden(a, b)]
    return found + [" → ".join(circle) for circle in circles(graph)]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One path for each circle met while walking the graph depth first."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for following in sorted(graph[name]):
                visit(following, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def test_rooms_keep_their_import_rules() -> None:
    assert not broken_rules(ROOT)


def test_every_module_lies_in_a_room_or_is_a_stage() -> None:
    loose = [n for n in modules(ROOT) if n.startswith("stages.") and n.count(".") > 1 and n.split(".")[1] not in ROOMS]
    assert not loose


def behind(module: str, root: Path) -> dict[str, int]:
    """{module: lines} of a module and of all that it imports, directly or not."""
    known = modules(root)
    found: dict[str, int] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = len(known[name].read_text().splitlines())
            waiting += imports(known[name], known)
    return found


def test_the_model_can_be_read_in_an_afternoon() -> None:
    """The loss of pretraining with everything behind it, and the whole core."""
    loss = behind("stages.core.bitagent", ROOT)
    assert len(loss) <= 12 and sum(loss.values()) <= 1750, loss
    assert sum(len(file.read_text().splitlines()) for file in (ROOT / "stages" / "core").glob("*.py")) <= 2000


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("stages/core/nets.py", "from stages.data import episodes", "stages.core.nets imports stages.data.episodes"),
        ("stages/runtime/loop.py", "import stages.core.nets", "stages.runtime.loop imports stages.core.nets"),
        ("stages/behave.py", "from stages.pretrain import run", "stages.behave imports stages.pretrain"),
        ("stages/data/episodes.py", "from bitagent_cli import app", "stages.data.episodes imports bitagent_cli.app"),
        ("stages/runtime/loop.py", "from stages.runtime import logs", "stages.runtime.logs → stages.runtime.loop"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, line: str, rule: str) -> None:
    """A small tree that keeps the rules, then one line that breaks them, as an `if TYPE_CHECKING` would hide it."""
    tree = {
        "stages/core/nets.py": "from stages.runtime.loop import Loop\n",
        "stages/runtime/loop.py": "Loop = 0\n",
        "stages/runtime/logs.py": "from stages.runtime.loop import Loop\n",
        "stages/data/episodes.py": "",
        "stages/behave.py": "from stages.core import nets\n",
        "stages/pretrain.py": "from stages.core.nets import Loop as run\n",
        "stages/transfer.py": "from stages.pretrain import run\n",
        "bitagent_cli/app.py": "from stages import behave\n",
    }
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert not broken_rules(tmp_path)
    (tmp_path / file).write_text(f"{tree[file]}from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {line}\n")
    assert any(rule in found for found in broken_rules(tmp_path))
