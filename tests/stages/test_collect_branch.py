"""Collecting branches: the same bytes however they are made, nothing lost by a stop, and what `all` does with them."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import collect
from stages.agents import target
from stages.data.episodes import Dataset
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput, Interrupted
from stages.worlds.render import render_states
from tests.core.helpers import BRANCH
from tests.stages.test_collect import Killed, config, content, one

ORDER = collect.Order(source="branch", workers=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random data alone."""
    root = tmp_path_factory.mktemp("source") / "walker-smoke"
    run = Run(domain="walker", scale="smoke", root=root, quiet=True)
    collect.run(config(), run, collect.Order(source="random", workers=1))
    return root


@pytest.fixture
def run(source: Path, walker_run: Run) -> Run:
    shutil.copytree(source, walker_run.root)
    return walker_run


def branch_config(**changed: Any) -> collect.Config:
    return collect.Config.model_validate(config().model_dump() | {"branch": BRANCH | changed})


def make(run: Run, order: collect.Order = ORDER, **changed: Any) -> Artifact:
    return one(collect.run(branch_config(**changed), run, order))


def beside(run: Run, name: str, **changed: Any) -> Run:
    """The same run in another folder, with the same random data."""
    other = dataclasses.replace(run, root=run.root.with_name(name), **changed)
    shutil.copytree(run.root / "data" / "random", other.root / "data" / "random")
    return other


def test_a_branch_dataset_holds_frames_of_its_states_and_no_reward(run: Run) -> None:
    made = make(run)
    extra = made.meta["extra"]
    assert made.path == run.root / "data" / "branch"
    assert (extra["source"], extra["task"], extra["episodes"], extra["frames"]) == ("branch", "", 5, 5 * 19)
    assert (extra["lead"], extra["cut_from"], extra["returns"]) == (8, ["random"], [0.0] * 5)
    random = artifacts.load(run.root / "data" / "random")
    assert made.meta["inputs"] == {"collect:random": random.id}
    dataset = Dataset.open([made.path, random.path], "walker")
    for number in range(5):
        episode = dataset.episode(number)
        assert episode.image is not None and episode.state is not None and episode.origin is not None
        np.testing.assert_array_equal(episode.image, render_states("walker", episode.state))
        assert not episode.is_first.any() and not episode.reward.any()
        _, origin, row = episode.origin
        cut_from = dataset.episode(5 + origin)
        for name in ("image", "action", "state"):  # of the lead-in
            np.testing.assert_array_equal(getattr(episode, name)[:9], getattr(cut_from, name)[row : row + 9])
    assert {p.name for p in made.path.parent.iterdir() if not p.name.startswith(".")} == {"branch", "random"}


def test_branches_repeat_bit_for_bit_side_by_side_or_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(run)
    monkeypatch.setattr(collect, "CHUNK", 0)  # a job a branch
    two = make(beside(run, "two"), dataclasses.replace(ORDER, workers=2))
    assert content(two) == content(first) and two.id == first.id
    assert content(make(beside(run, "seed", seed=1))) != content(first)


def test_a_kill_loses_only_the_branch_in_flight(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, draw, drawn = make(beside(run, "whole")), target.render_states, []

    def die_at_the_third(*args: Any) -> np.ndarray:
        if len(drawn) == 2:
            raise Killed
        drawn.append(args)
        return draw(*args)

    with monkeypatch.context() as patch:
        patch.setattr(target, "render_states", die_at_the_third)
        with pytest.raises(Killed):
            make(run)
    kept = {p.name: p.stat().st_mtime_ns for p in (run.root / "data" / "branch.partial").glob("episode-*")}
    assert len(kept) == 2
    monkeypatch.setattr(target, "render_states", lambda *args: drawn.append(args) or draw(*args))
    assert make(run).id == whole.id
    assert len(drawn) == 5  # none twice


def test_a_signal_ends_with_the_command_that_continues(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = target.render_states

    def draw_and_interrupt(*args: Any) -> np.ndarray:
        signal.raise_signal(signal.SIGTERM)
        return draw(*args)

    order = dataclasses.replace(ORDER, frames=31)
    with monkeypatch.context() as patch:
        patch.setattr(target, "render_states", draw_and_interrupt)
        with pytest.raises(Interrupted, match=r"collect --preset walker .*--source branch --frames 31"):
            make(run, order)
    assert len(list((run.root / "data" / "branch.partial").glob("episode-*"))) == 1
    assert make(run, order).meta["extra"]["episodes"] == 4  # of ten decisions under other actions each


def test_all_makes_branches_of_what_it_made_before_them(walker_run: Run) -> None:
    small = branch_config(in_all=True).model_dump()
    small["expert"] |= {"decisions": {"default": 500}, "keep_episodes": 1}
    order = collect.Order(task="walk", workers=1)
    made = collect.run(collect.Config.model_validate(small), walker_run, order)
    assert [a.meta["name"] for a in made] == ["expert-walk", "random", "branch"]
    assert list(made[-1].meta["inputs"].values()) == [made[0].id, made[1].id]
    again = collect.run(collect.Config.model_validate(small), walker_run, order)
    assert [a.id for a in again] == [a.id for a in made]
    small["branch"]["in_all"] = False
    assert len(collect.run(collect.Config.model_validate(small), walker_run, order)) == 2


def test_finished_branches_are_reused_until_what_they_were_cut_from_changes(run: Run) -> None:
    first = make(run)
    assert make(run).id == first.id
    with pytest.raises(BadInput, match=r"config\.branch\.length .*--fresh"):
        make(run, length=9)

    # another dataset beside them changes nothing for the finished ones
    data, facts = run.root / "data", {"source": "random", "task": "", "renderer": "ray", "image_size": 64}
    writer = target.DatasetWriter(data / "more", run, {}, {**facts, "camera": None})
    writer.append(0, Dataset.open([data / "random"], "walker").episode(0))
    writer.finish()
    assert make(run).id == first.id

    fresh = dataclasses.replace(run, fresh=True)
    collect.run(branch_config(), dataclasses.replace(fresh, seed=1), collect.Order(source="random", workers=1))
    with pytest.raises(BadInput, match=r"inputs\.collect:random .*--fresh"):
        make(run)
    assert make(dataclasses.replace(run, renew=True)).id != first.id
    assert make(fresh).meta["extra"]["cut_from"] == ["more", "random"]


def test_branches_of_states_become_the_same_frames(run: Run) -> None:
    alone = dataclasses.replace(run, root=run.root.with_name("alone"))
    with pytest.raises(BadInput, match=r"states to cut branches from; .*bitagent collect .*--states-only"):
        make(alone, dataclasses.replace(ORDER, states_only=True))
    collect.run(branch_config(), alone, collect.Order(source="random", workers=1, states_only=True))
    states = make(alone, dataclasses.replace(ORDER, states_only=True))
    assert states.path == alone.root / "states" / "branch" and states.meta["extra"]["image_size"] == 0
    rendered = make(alone, collect.Order(render=states.path, workers=1))
    assert content(rendered) == content(make(run))
    assert rendered.meta["extra"]["cut_from"] == ["random"] and rendered.meta["extra"]["lead"] == 8
    large = make(beside(run, "large"), dataclasses.replace(ORDER, size=16))
    assert large.meta["extra"]["image_size"] == 16
