"""Logs beside metrics.jsonl: none unless asked for; a training that goes on goes on in the same place."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.runtime import sinks
from stages.runtime.errors import BadInput
from stages.runtime.loop import Metrics


def test_nothing_but_the_lines_unless_asked(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.log(1, {"loss": 1.0})
    metrics.close()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_weights_and_biases_is_told_and_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    told: list[tuple[int, dict[str, float]]] = []

    def init(**about: Any) -> Any:
        opened.append(about)
        return SimpleNamespace(
            log=lambda values, step: told.append((step, values)), finish=lambda: told.append((0, {}))
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=object()))
    for start in (1, 2, 1):
        metrics = Metrics(tmp_path / "walk.log", start, "wandb")
        metrics.log(start, {"loss": 0.5})
        metrics.close()
    first, resumed, fresh = (about["id"] for about in opened)
    assert first == resumed != fresh
    assert opened[0]["project"] == "bitagent" and opened[0]["name"].endswith("/walk")
    assert told[:2] == [(1, {"loss": 0.5}), (0, {})]


def test_what_is_unknown_or_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="did you mean 'tensorboard'"):
        sinks.check_sink("tensorbord")
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r'pip install "bitagent\[wandb\]"'):
        sinks.check_sink("wandb")
