"""README and docs: links and paths lead somewhere, lines are short, the environment is activated before it is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.newcomer import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"""\]\(([^)\s]+)\)|src="([^"]+)\"""")
SOURCE = re.compile(r"(?<![\w/.])(?:stages|tests)/[\w/]+\.py")
MAX_README_LINES, MAX_COLUMNS = 170, 120


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def dead_links(root: Path) -> list[str]:
    """Relative links to no file or folder, or to no heading of a page."""
    found = []
    for page in pages(root):
        for link in (a or b for a, b in LINK.findall(page.read_text())):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if re.match(r"[a-z]+:", link):
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                found.append(f"{page.name}: {link}")
    return found


def dead_paths(root: Path) -> list[str]:
    """Python files that a page names and that are not there; those of its examples are the reader's to write."""
    return [f"{p.name}: {s}" for p in pages(root) for s in SOURCE.findall(prose(p)) if not (root / s).exists()]


def prose(page: Path) -> str:
    """A page without its fenced examples."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def long_lines(root: Path) -> list[str]:
    """Lines over 120 columns; rows of tables and the log may be longer."""
    return [
        f"{page.name}:{number}"
        for page in pages(root)
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if len(line) > MAX_COLUMNS and not line.startswith("|") and page.name != "log.md"
    ]


def readme_faults(root: Path) -> list[str]:
    """A README that is too long, or uses `bitagent` before the environment is activated."""
    lines = (root / "README.md").read_text().splitlines()
    activated = [n for n, line in enumerate(lines) if line.startswith("source .venv/bin/activate")]
    used = [n for n, line in enumerate(lines) if line.startswith("bitagent ")]
    late = bool(used) and (not activated or activated[0] > used[0])
    return ["too long"] * (len(lines) > MAX_README_LINES) + ["bitagent before activate"] * late


FAULTS = [dead_links, dead_paths, long_lines, readme_faults]


@pytest.mark.parametrize("faults", FAULTS)
def test_pages_are_sound(faults: Callable[[Path], list[str]]) -> None:
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[gone](docs/gone.md)", ["README.md: docs/gone.md"]),
        ('<img src="gone.gif">', ["README.md: gone.gif"]),
        ("[no such heading](docs/page.md#two)", ["README.md: docs/page.md#two"]),
        ("see `stages/gone.py`", ["README.md: stages/gone.py"]),
        ("word " * 30, ["README.md:4"]),
        ("\n" * MAX_README_LINES, ["too long"]),
    ],
)
def test_a_fault_is_found(tmp_path: Path, line: str, found: list[str]) -> None:
    """A small tree without a fault, then one line that is one."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# One: a page\n\n[back](../README.md), [self](#one-a-page)\n")
    sound = "source .venv/bin/activate\nbitagent doctor\n[page](docs/page.md#one-a-page), [far](https://a.b/c)\n"
    (tmp_path / "README.md").write_text(sound)
    assert [fault for faults in FAULTS for fault in faults(tmp_path)] == []
    (tmp_path / "README.md").write_text(sound + line)
    assert [fault for faults in FAULTS for fault in faults(tmp_path)] == found


def test_the_readmes_first_commands_are_those_that_ci_runs() -> None:
    """In order, each on a line of its own: tests/newcomer.py."""
    lines = [line.partition("  #")[0].strip() for line in (ROOT / "README.md").read_text().splitlines()]
    places = [lines.index(command.line) for command in COMMANDS]
    assert len(COMMANDS) == 10 and places == sorted(places)


def test_a_command_before_the_environment_is_found(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("bitagent doctor\nsource .venv/bin/activate\n")
    assert readme_faults(tmp_path) == ["bitagent before activate"]
