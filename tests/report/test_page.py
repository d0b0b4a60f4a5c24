"""The page is one file that loads nothing, escapes what users typed, and tells where results come from."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages.report.lineage import provenance, still_there
from stages.report.page import Chapter, Chart, Picture, bar_of, write_report
from stages.report.tables import Table
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact


def make(path: Path, stage: str, inputs: list[Artifact], seed: int = 0) -> Artifact:
    tensors = {"a": {"x": torch.full((2,), float(seed))}}
    return artifacts.save(path, stage, tensors, domain="walker", config={}, seed=seed, inputs=inputs)


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def page(folder: Path, chapters: list[Chapter], tree: Any = ()) -> str:
    write_report(folder, "BiTAgent: walker", {"scale": "smoke"}, chapters, tree)
    return (folder / "report.html").read_text()


def test_page_is_self_contained_and_well_formed(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "b.gif")
    table = Table("Scores", "A note.", ["task", "paper: x"], [["walk", "0.5"], ["paper: y", "0.6"]])
    chapter = Chapter("One", "Text.", [table], [Picture("b.gif", "film")], [Chart(("a.png",), "chart")])
    html = page(tmp_path, [chapter])
    links = Links()
    links.feed(html)
    assert not links.open
    assert all(link.startswith(("data:", "#")) for link in links.found), links.found
    assert sum(link.startswith("data:image/png") for link in links.found) == 1
    assert sum(link.startswith("data:image/gif") for link in links.found) == 1
    assert not re.search(r"@import|url\(|<script", html)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert '<td class="paper">0.5</td>' in html and '<tr class="paper"><td class="">paper: y</td>' in html


def test_a_score_is_a_bar_and_nothing_else_is() -> None:
    cells = ("0.85 ± 0.06 (3)", "-0.20 [0.01]", "1.03 ± 0.02", "0.69", "120", "paper: bitagent", "")
    assert [bar_of(cell) for cell in cells] == [85.0, 0.0, 100.0, None, None, None, None]


def test_what_users_typed_is_escaped(tmp_path: Path) -> None:
    table = Table("Free prompts", "", ["prompt"], [["<script>alert(1)</script>"]])
    html = page(tmp_path, [Chapter("<b>", "a & b", [table])])
    assert "<script" not in html and "&lt;script&gt;" in html and "a &amp; b" in html


def test_provenance_goes_down_to_the_data_once(tmp_path: Path) -> None:
    data = make(tmp_path / "data", "collect", [])
    model = make(tmp_path / "model", "pretrain", [data])
    policies = [make(tmp_path / f"policy-{i}", "behave", [model], seed=i) for i in (0, 1)]
    tree = provenance(policies, tmp_path)
    assert [(n.path, n.name) for n in tree] == [("policy-0", "behave:policy-0"), ("policy-1", "behave:policy-1")]
    assert tree[0].inputs[0].id == model.id and tree[0].inputs[0].inputs[0].id == data.id
    assert tree[1].inputs[0].state == "above" and not tree[1].inputs[0].inputs
    assert [a.id for a in still_there(tree)] == [policies[0].id, model.id, data.id, policies[1].id]
    html = page(tmp_path, [], tree)
    assert data.id in html and f"{model.id}, above" in html


def test_provenance_says_what_changed_or_is_gone(tmp_path: Path) -> None:
    data, other = make(tmp_path / "data", "collect", []), make(tmp_path / "other", "collect", [], seed=5)
    model = make(tmp_path / "model", "pretrain", [data, other])
    make(tmp_path / "data", "collect", [], seed=1)
    shutil.rmtree(other.path)
    (node,) = provenance([model], tmp_path)
    assert [(n.path, n.state) for n in node.inputs] == [("data", "changed"), ("other", "gone")]
    assert [a.id for a in still_there([node])] == [model.id]
    assert "changed" in page(tmp_path, [], [node])
