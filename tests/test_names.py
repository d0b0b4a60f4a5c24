"""One name, one thing: top-level names of the product, parameters of its functions, lines of its files."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_layers import ROOT, modules

STAGES = {f"stages.{name}" for name in ("collect", "embed", "pretrain", "behave", "evaluate", "transfer", "visualize")}
INTERFACE = {"run", "Config"}  # what every stage calls by the same name
MAX_PARAMETERS, MAX_LINES = 7, 430


def shared_names(root: Path) -> list[str]:
    """'name: module, module' for each function or class that two modules define at their top level, or one twice."""
    places: dict[str, list[str]] = defaultdict(list)
    for module, file in modules(root).items():
        for node in ast.parse(file.read_text()).body:
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not (module in STAGES and node.name in INTERFACE):
                places[node.name].append(module)
    return [f"{name}: {', '.join(found)}" for name, found in sorted(places.items()) if len(found) > 1]


def long_signatures(root: Path) -> list[str]:
    """'module.function has 9 parameters' for each function, method or inner function with too many."""
    found = []
    for module, file in modules(root).items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = sum(a.arg not in ("self", "cls") for a in given)
                if count > MAX_PARAMETERS:
                    found.append(f"{module}.{node.name} has {count} parameters")
    return found


def long_files(root: Path) -> list[str]:
    """'module has 431 lines' for each file that is too long."""
    lines = {module: len(file.read_text().splitlines()) for module, file in modules(root).items()}
    return [f"{module} has {count} lines" for module, count in lines.items() if count > MAX_LINES]


@pytest.mark.parametrize("rule", [shared_names, long_signatures, long_files])
def test_the_product_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert not rule(ROOT)


def test_what_breaks_a_rule_is_found(tmp_path: Path) -> None:
    tree = {
        "stages/embed.py": "class Config: ...\ndef run(): ...\ndef save(): ...\n",
        "stages/collect.py": "class Config: ...\ndef run(): ...\n",
        "stages/data/shards.py": "def save(a, b, c, d, e, f, g): ...\n",
        "bitagent_cli/app.py": "class A:\n    def __init__(self, a, b, c, d, *, e, f, g, h): ...\n" + "\n" * MAX_LINES,
    }
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert shared_names(tmp_path) == ["save: stages.data.shards, stages.embed"]
    assert long_signatures(tmp_path) == ["bitagent_cli.app.__init__ has 8 parameters"]
    assert long_files(tmp_path) == ["bitagent_cli.app has 432 lines"]
