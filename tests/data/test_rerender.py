"""States rendered again: the same bytes from other processes, resumable, refused without states."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from stages.data import rerender
from stages.data.episodes import Dataset, DatasetWriter, Episode, write_sidecar
from stages.data.rerender import render_dataset
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput, Interrupted
from stages.worlds.render import Renderer, render_states
from tests.data.synthetic import make_dataset, make_episode, make_run, make_writer

SIZE, EPISODES, ROWS = 16, 3, 4


def walker_episode(number: int) -> Episode:
    """A few random poses, with the frames that this process renders from them."""
    model = Renderer("walker").model
    random = np.random.default_rng(number)
    episode = make_episode(number, ROWS, image=False)
    episode.state = random.uniform(-0.5, 0.5, (ROWS, model.nq + model.nv))
    episode.image = render_states("walker", episode.state, SIZE)
    return episode


@pytest.fixture
def collected(tmp_path: Path) -> Artifact:
    writer = make_writer(tmp_path / "data", image_size=SIZE)
    for number in range(EPISODES):
        writer.append(number, walker_episode(number))
    return writer.finish()


def frames(artifact: Artifact) -> list[bytes]:
    return [file.read_bytes() for file in sorted(artifact.path.glob("shard-*.safetensors"))]


def test_states_rendered_in_other_processes_give_identical_bytes(collected: Artifact, tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "states", image_size=0, renderer="")
    for number in range(EPISODES):
        episode = walker_episode(number)
        episode.image = None
        writer.append(number, episode)
    states = writer.finish()
    opened = Dataset.open([states.path], "walker")
    assert not opened.has("image") and states.meta["extra"]["image_size"] == 0
    np.testing.assert_array_equal(opened.rows("state", np.arange(ROWS)), walker_episode(0).state)
    again = render_dataset(states, tmp_path / "again", make_run(tmp_path), SIZE, None, workers=2)
    assert frames(again) == frames(collected)
    assert again.meta["inputs"] == {"collect:states": states.id}
    Dataset.open([collected.path, again.path], "walker")  # they mix: same renderer, size and camera
    assert (
        render_dataset(states, tmp_path / "again", make_run(tmp_path), SIZE, 0, workers=2).id == again.id
    )  # the default camera, by number


def test_other_sizes_and_looks_do_not_mix(collected: Artifact, tmp_path: Path) -> None:
    side = render_dataset(collected, tmp_path / "side", make_run(tmp_path), SIZE, 1, workers=1)
    large = render_dataset(collected, tmp_path / "large", make_run(tmp_path), 2 * SIZE, None, workers=1)
    assert Dataset.open([large.path], "walker").rows("image", [0]).shape == (1, 3, 2 * SIZE, 2 * SIZE)
    for other in (side, large):
        with pytest.raises(BadInput, match="do not mix"):
            Dataset.open([collected.path, other.path], "walker")
    with pytest.raises(BadInput, match="--fresh"):
        render_dataset(collected, tmp_path / "large", make_run(tmp_path), SIZE, None, workers=1)


def test_a_stopped_rendering_continues(collected: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    render = rerender._render_episode

    def render_then_stop(writer: DatasetWriter, number: int) -> int:
        rendered.append(number)
        if rendered == [0, 1]:
            os.kill(os.getpid(), signal.SIGINT)
        return render(writer, number)

    monkeypatch.setattr(rerender, "_render_episode", render_then_stop)
    with pytest.raises(Interrupted, match="bitagent collect --preset walker --render") as stopped:
        render_dataset(collected, tmp_path / "again", make_run(tmp_path), SIZE, None, workers=1)
    assert stopped.value.exit_code == 128 + signal.SIGINT
    again = render_dataset(collected, tmp_path / "again", make_run(tmp_path), SIZE, None, workers=1)
    assert frames(again) == frames(collected)
    assert rendered == [0, 1, 2]


def test_without_states_there_is_nothing_to_render(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "data")
    writer.append(0, make_episode(0, state=False))
    source = writer.finish()
    with pytest.raises(BadInput, match="no physics state"):
        render_dataset(source, tmp_path / "again", make_run(tmp_path), SIZE, None, workers=1)


def test_embeddings_must_fit_their_dataset(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "data", (20, 12))
    about = (tmp_path / "e", make_run(tmp_path), [source])
    with pytest.raises(ValueError, match="for 32 rows"):
        write_sidecar(*about, [np.zeros((31, 4))], {}, {"backbone": "noise"})
    with pytest.raises(ValueError):
        write_sidecar(*about, [], {}, {"backbone": "noise"})
    with pytest.raises(BadInput, match="noise gave embeddings that are not finite"):
        write_sidecar(*about, [np.full((32, 4), np.nan)], {}, {"backbone": "noise"})
    assert not (tmp_path / "e").exists()
    made = write_sidecar(*about, [np.ones((32, 4))], {}, {"backbone": "noise"})
    assert made.meta["extra"] == {"backbone": "noise", "dim": 4}
    assert artifacts.load(tmp_path / "e", "embed").meta["inputs"] == artifacts.input_ids([source])
