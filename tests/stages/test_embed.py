"""The embed stage on a small real walker dataset: training, sidecars, resumption, refusals, the probe sheet."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitagent_cli.presets import resolve as load_preset
from stages import embed
from stages.backbones import backbone_id, load_backbone
from stages.backbones.base import resize
from stages.backbones.offline import tower
from stages.backbones.offline.contrast import Lessons, draw_lesson
from stages.backbones.offline.tower import OfflineBackbone, TextTower
from stages.data.episodes import Dataset, DatasetWriter, held_out_episodes, write_sidecar
from stages.data.genrl_import import import_genrl
from stages.data.inputs import find_inputs
from stages.data.shards import Episode
from stages.runtime import artifacts
from stages.runtime.artifacts import Artifact
from stages.runtime.config import Run
from stages.runtime.errors import BadInput, Interrupted
from stages.runtime.names import backbone_folder
from stages.worlds import tasks
from stages.worlds.motion import window_rows
from stages.worlds.render import render_states
from stages.worlds.tasks import make_env
from tests.backbones.tiny import SIZE, save_tiny
from tests.data.test_genrl_import import genrl_arrays, save
from tests.stages.small_run import Killed

ROWS = 24


def play(number: int, image: bool = True, size: int = 64, state: bool = True) -> Episode:
    """The beginning of a random walker episode."""
    env = make_env("walker", "walk", seed=number)
    random = np.random.default_rng(number)
    steps = [env.reset(number)]
    actions = [np.zeros(env.action_dim, np.float32)]
    for _ in range(ROWS - 1):
        actions.append(random.uniform(-1, 1, env.action_dim).astype(np.float32))
        steps.append(env.step(actions[-1]))
    states = np.stack([s.state for s in steps])
    return Episode(
        image=render_states("walker", states, size) if image else None,
        action=np.stack(actions),
        reward=np.array([s.reward for s in steps], np.float32),
        is_first=np.arange(ROWS) == 0,
        is_terminal=np.zeros(ROWS, bool),
        state=states if state else None,
        seed=number,
    )


def make_writer(root: Path, name: str = "random", task: str = "", size: int = 64) -> DatasetWriter:
    facts = {"source": "expert" if task else "random", "task": task, "renderer": "ray" if size else ""}
    facts |= {"image_size": size, "camera": None}
    return DatasetWriter(root / "data" / name, Run("walker", "smoke", root), {}, facts)


def write_data(
    root: Path, name: str = "random", episodes: int = 3, first: int = 0, task: str = "", **frames: Any
) -> Artifact:
    writer = make_writer(root, name, task, frames.get("size", 64) if frames.get("image", True) else 0)
    for number in range(episodes):
        writer.append(number, play(first + number, **frames))
    return writer.finish()


def config(**tower: Any) -> embed.Config:
    """The smoke preset's section, with a few updates."""
    settings = [f"embed.offline.{k}={v}" for k, v in {"updates": 4, **tower}.items()]
    return load_preset("walker", "smoke", settings).embed


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(domain="walker", scale="smoke", root=tmp_path / "walker-smoke", quiet=True)
    write_data(run.root)
    return run


def test_the_offline_tower_learns_from_frames_of_any_size(tmp_path: Path) -> None:
    """Those of 128 pixels end in embeddings like any others."""
    run = Run(domain="walker", scale="smoke", root=tmp_path / "walker-smoke", quiet=True)
    source = write_data(run.root, size=128)
    made = embed.run(config(), run)[0]
    assert made.meta["extra"]["frame_size"] == tower.FRAME_SIZE
    assert Dataset.open([source.path], "walker", [made.path]).dim_embedding


def test_a_lesson_is_resized_to_what_the_tower_reads(tmp_path: Path) -> None:
    dataset = Dataset.open([write_data(tmp_path, episodes=1, size=128).path], "walker")
    windows = window_rows(np.array([0, ROWS]))  # (N, 8)
    draw, membership = np.arange(1, ROWS + 1) / ROWS, np.ones((ROWS, 1), np.float32)
    lesson = draw_lesson(Lessons(dataset, [], windows, membership, draw, [torch.zeros(2, 384)]), 0, 0, 4, 1)
    rows = np.searchsorted(draw, np.random.default_rng([0, 0]).random(4), side="right")
    stored = torch.from_numpy(dataset.rows("image", windows[rows]))  # (4, 8, 3, 128, 128)
    assert lesson["frames"].shape == (4, 8, 3, 64, 64) and lesson["frames"].dtype == torch.uint8
    assert torch.equal(lesson["frames"].flatten(0, 1), resize(stored.flatten(0, 1), 64))


def files_of(artifact: Artifact) -> dict[str, str]:
    return dict(artifact.meta["files"])


def test_sidecars_hold_the_embedding_of_every_window(run: Run) -> None:
    write_data(run.root, "expert-walk", episodes=2, first=10, task="walk")
    made = embed.run(config(), run)
    assert [a.path.name for a in made] == ["expert-walk", "random"]
    backbone = load_backbone("offline", run.root, "cpu")
    for artifact in made:
        source = artifacts.load(run.root / "data" / artifact.path.name, "collect")
        dataset = Dataset.open([source.path], "walker", [artifact.path])
        assert artifact.meta["extra"]["backbone_id"] == backbone.id
        assert artifact.meta["extra"]["dim"] == backbone.dim == dataset.dim_embedding
        assert source.id in artifact.meta["inputs"].values()
        episode = dataset.episode(1)
        start = int(dataset.episode_start[1])
        rows = np.maximum(np.arange(ROWS)[:, None] + np.arange(-7, 1), 0)
        assert episode.image is not None
        wanted = backbone.encode_video(torch.from_numpy(np.array(episode.image)[rows])).numpy()
        found = dataset.rows("embedding", np.arange(start, start + ROWS))
        assert found.dtype == np.float16
        np.testing.assert_allclose(found.astype(np.float32), wanted, atol=2e-2)


def test_with_a_stride_frames_hold_the_embedding_before_them(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """It is recorded, another one is refused, and embeddings of every frame serve any."""
    every = embed.run(config(), run)[0]
    sparse = config().model_copy(update={"stride": 4})
    assert embed.run(sparse, run)[0].id == every.id
    loud = dataclasses.replace(run, fresh=True, quiet=False)
    made = embed.run(sparse, loud)[0]
    assert made.meta["config"]["stride"] == 4 and "stride" not in every.meta["config"]
    told = capsys.readouterr()
    assert f"embed {made.path.name}: about " in told.out + told.err
    dataset = Dataset.open([run.root / "data" / made.path.name], "walker", [made.path])
    found = dataset.rows("embedding", np.arange(ROWS))
    np.testing.assert_array_equal(found, found[np.arange(ROWS) // 4 * 4])
    assert (found[4] != found[0]).any()
    with pytest.raises(BadInput, match=r"config\.stride.*--fresh"):
        embed.run(config(), run)


def test_the_same_seed_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    other = dataclasses.replace(run, root=tmp_path / "again")
    write_data(other.root)
    one, two = embed.run(config(), run)[0], embed.run(config(), other)[0]
    assert files_of(one) == files_of(two)
    third = dataclasses.replace(run, root=tmp_path / "third", seed=1)
    write_data(third.root)
    assert files_of(embed.run(config(), third)[0]) != files_of(one)


def test_finished_work_is_reused_and_other_work_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = embed.run(config(), run)
    loud = dataclasses.replace(run, quiet=False)
    assert [a.id for a in embed.run(config(), loud)] == [a.id for a in first]
    assert capsys.readouterr().out.count("reusing") == 2
    with pytest.raises(BadInput, match=r"config\.lr.*--fresh"):
        embed.run(config(lr=0.1), run)
    anew = embed.run(config(lr=0.1), dataclasses.replace(run, fresh=True))
    assert anew[0].meta["extra"]["backbone_id"] != first[0].meta["extra"]["backbone_id"]


def test_a_dataset_added_later_is_embedded_by_the_same_backbone(run: Run) -> None:
    first = embed.run(config(), run)[0]
    write_data(run.root, "expert-run", episodes=1, first=5, task="run")
    made = {a.path.name: a for a in embed.run(config(), run)}
    assert made["random"].id == first.id
    assert made["expert-run"].meta["extra"]["backbone_id"] == first.meta["extra"]["backbone_id"]


def test_a_dataset_made_again_is_noticed(run: Run) -> None:
    embed.run(config(), run)
    write_data(run.root, first=50)
    with pytest.raises(BadInput, match="--fresh"):
        embed.run(config(), run)


def test_renewing_makes_again_what_other_data_was_embedded_into(run: Run) -> None:
    first = embed.run(config(), run)[0]
    renewing = dataclasses.replace(run, renew=True)
    assert embed.run(config(), renewing)[0].id == first.id
    write_data(run.root, first=50)
    again = embed.run(config(), renewing)[0]
    assert again.id != first.id
    assert again.meta["extra"]["backbone_id"] == load_backbone("offline", run.root, "cpu").id
    with pytest.raises(BadInput, match=r"config\.lr.*--fresh"):
        embed.run(config(lr=0.1), renewing)


def test_the_vectors_of_the_domains_prompts_are_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embed.run(config(), run)
    prompts = [task.prompt for task in tasks.TASKS if task.domain == run.domain]
    backbone = load_backbone("offline", run.root, "cpu")
    assert isinstance(backbone, OfflineBackbone)
    wanted = F.normalize(TextTower().encode(prompts) @ backbone.project.weight.T, dim=-1)
    monkeypatch.setattr(tower, "TextTower", None)  # not needed for these
    assert torch.allclose(backbone.encode_text(prompts), wanted, atol=1e-5)


def test_training_sees_neither_rewards_nor_held_out_episodes(run: Run, tmp_path: Path) -> None:
    """Other rewards, and other pixels in held-out episodes, leave the trained tower as it is."""
    share = 0.5
    held = held_out_episodes(Dataset.open([run.root / "data" / "random"], "walker"), share)
    assert 0 < held.sum() < len(held)
    other = dataclasses.replace(run, root=tmp_path / "other")
    writer = make_writer(other.root)
    for number in range(len(held)):
        episode = play(number)
        assert episode.image is not None
        episode.reward = episode.reward + 5
        if held[number]:
            episode.image = 255 - episode.image
        writer.append(number, episode)
    writer.finish()
    towers = [
        embed.train_offline(config(holdout=share).offline, place, find_inputs(place)[0]).tensors("model")
        for place in (run, other)
    ]
    assert all(torch.equal(towers[0][k], towers[1][k]) for k in towers[0])


def test_missing_data_names_the_command(tmp_path: Path) -> None:
    empty = Run(domain="walker", scale="smoke", root=tmp_path, quiet=True)
    with pytest.raises(BadInput, match="bitagent collect --preset walker --scale smoke"):
        embed.run(config(), empty)


def test_training_needs_states_and_frames(tmp_path: Path) -> None:
    run = Run(domain="walker", scale="smoke", root=tmp_path, quiet=True)
    write_data(run.root, episodes=1, state=False)
    with pytest.raises(BadInput, match=r"both frames and physics states.*bitagent collect"):
        embed.run(config(), run)


@pytest.mark.parametrize("frames", ["states", "other size", "imported"])
def test_frames_are_rendered_at_the_backbones_size_or_resized(frames: str, tmp_path: Path) -> None:
    run = Run(domain="walker", scale="smoke", root=tmp_path / "run", quiet=True)
    kinds: dict[str, dict[str, Any]] = {
        "states": {"image": False},
        "other size": {"size": 48},
        "imported": {"state": False},
    }
    source = write_data(run.root, episodes=2, **kinds[frames])
    save_tiny("clip", tmp_path / "tiny-clip")
    made = embed.run(config(), run, backbone=str(tmp_path / "tiny-clip"))[0]
    backbone = load_backbone(str(tmp_path / "tiny-clip"), run.root, "cpu")
    dataset = Dataset.open([source.path], "walker", [made.path])
    rows = np.arange(ROWS)
    if frames == "imported":
        pictures = np.array(dataset.rows("image", rows))
        assert made.meta["config"]["frames"] == f"resized to {SIZE}"
    else:
        pictures = render_states("walker", dataset.rows("state", rows), SIZE)
        assert made.meta["config"]["frames"] == f"ray at {SIZE}"
    wanted = backbone.encode_episode(pictures, 16).numpy()
    np.testing.assert_allclose(dataset.rows("embedding", rows).astype(np.float32), wanted, atol=2e-3)


def enlarged(frames: np.ndarray) -> torch.Tensor:
    """uint8 (T, 3, H, H) → (T, 3, SIZE, SIZE), bilinearly: each new pixel's centre between four old ones."""
    place = np.clip((np.arange(SIZE) + 0.5) * frames.shape[-1] / SIZE - 0.5, 0, frames.shape[-1] - 1)
    low = np.minimum(place.astype(int), frames.shape[-1] - 2)
    share = (place - low)[:, None]
    rows = frames[:, :, low] * (1 - share) + frames[:, :, low + 1] * share  # (T, 3, SIZE, H)
    wide = rows[..., low] * (1 - share[:, 0]) + rows[..., low + 1] * share[:, 0]  # (T, 3, SIZE, SIZE)
    return torch.from_numpy(wide.round().astype(np.uint8))


def test_enlarged_frames_are_the_stored_ones_bilinearly_resized(tmp_path: Path) -> None:
    run = Run(domain="walker", scale="smoke", root=tmp_path / "run", quiet=True)
    source = write_data(run.root, episodes=1, size=16)  # it has states to render from, too
    name = str(tmp_path / "tiny-clip")
    save_tiny("clip", tmp_path / "tiny-clip")
    made = embed.run(config().model_copy(update={"frames": "enlarged"}), run, backbone=name)[0]
    native = load_backbone(name, run.root, "cpu")
    assert made.meta["config"]["frames"] == f"enlarged to {SIZE}"
    assert made.meta["config"]["backbone_id"] == made.meta["extra"]["backbone_id"] == f"{native.id}+enlarged"
    dataset = Dataset.open([source.path], "walker", [made.path])
    rows = np.maximum(np.arange(ROWS)[:, None] + np.arange(-7, 1), 0)
    wanted = native.encode_video(enlarged(dataset.rows("image", np.arange(ROWS)))[rows]).numpy()
    found = dataset.rows("embedding", np.arange(ROWS)).astype(np.float32)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    rendered = embed.run(config(), dataclasses.replace(run, fresh=True), backbone=name)[0]
    assert rendered.meta["config"]["frames"] == f"ray at {SIZE}" and rendered.meta["extra"]["backbone_id"] == native.id
    other = Dataset.open([source.path], "walker", [rendered.path]).rows("embedding", np.arange(ROWS))
    assert np.abs(other - found).max() > 1e-2


def test_without_frames_there_is_nothing_to_enlarge(tmp_path: Path) -> None:
    run = Run(domain="walker", scale="smoke", root=tmp_path / "run", quiet=True)
    write_data(run.root, episodes=1, image=False)
    save_tiny("clip", tmp_path / "tiny-clip")
    with pytest.raises(BadInput, match="holds states without frames; render them with"):
        embed.run(config().model_copy(update={"frames": "enlarged"}), run, backbone=str(tmp_path / "tiny-clip"))


# ---------------------------------------------------------------------------- imported data


def import_data(run: Run, task: str = "", clip: bool = True) -> Artifact:
    """One episode as GenRL's, with clip_video or without."""
    arrays = genrl_arrays(1, ROWS)
    save(run.root.parent / f"genrl{task}" / "1.npz", {k: v for k, v in arrays.items() if clip or k != "clip_video"})
    return import_genrl(run.root.parent / f"genrl{task}", run, task)[0]


def test_the_offline_backbone_of_collected_data_embeds_imported_frames(run: Run) -> None:
    imported = import_data(run)
    made = {a.path.name: a for a in embed.run(config(), run)}
    assert set(made) == {"imported", "random"}
    backbone = load_backbone("offline", run.root, "cpu")
    assert artifacts.load(run.root / "backbone").meta["inputs"].keys() == {"collect:random"}
    dataset = Dataset.open([imported.path], "walker", [made["imported"].path])
    image = dataset.episode(0).image
    assert image is not None
    wanted = backbone.encode_episode(np.array(image), 64).numpy()
    np.testing.assert_allclose(dataset.rows("embedding", np.arange(ROWS)).astype(np.float32), wanted, atol=2e-3)
    with pytest.raises(
        BadInput, match=r"imported has no physics states to render again: move one .* out of"
    ) as refusal:
        Dataset.open([run.root / "data" / name for name in made], "walker")
    assert "--render" not in str(refusal.value)
    (run.root / "data" / "random").rename(run.root / "apart")  # as the refusal says
    assert [a.id for a in embed.run(config(), run)] == [made["imported"].id]
    with pytest.raises(BadInput, match=r"config\.lr.*--fresh"):
        embed.run(config(lr=0.1), run)


def test_embeddings_of_genrl_mix_with_those_of_enlarged_frames_alone(tmp_path: Path) -> None:
    run = Run(domain="walker", scale="smoke", root=tmp_path / "run", quiet=True)
    name = str(tmp_path / "tiny-clip")
    save_tiny("clip", tmp_path / "tiny-clip")
    data = [import_data(run), import_data(run, "walk", clip=False)]
    theirs = artifacts.load(run.root / "embeddings" / "internvideo2" / "imported")
    assert backbone_id(theirs, name, run) == load_backbone(name, run.root, "cpu").id + "+enlarged"
    places = []
    for frames in ("native", "enlarged"):
        settings = config().model_copy(update={"frames": frames})
        own = embed.run(settings, dataclasses.replace(run, fresh=frames == "enlarged"), backbone=name)
        assert own[0].meta["extra"]["dim"] == 12
        # A sidecar of the same width as the tiny backbone's, imported from GenRL as far as it says.
        config_of = {"import": "genrl", "backbone": name}
        block = np.ones((ROWS, 12))
        imported = write_sidecar(tmp_path / f"theirs-{frames}", run, data[:1], [block], config_of, {"backbone": name})
        places.append([imported.path, own[1].path])
        if frames == "native":
            with pytest.raises(BadInput, match=r"different pictures.*--set embed\.frames=enlarged --fresh"):
                Dataset.open([a.path for a in data], "walker", places[0])
    assert Dataset.open([a.path for a in data], "walker", places[1]).dim_embedding == 12


def test_rendering_over_processes_gives_the_same_bytes(tmp_path: Path) -> None:
    save_tiny("clip", tmp_path / "tiny-clip")
    made = []
    for workers in (1, 2):
        run = Run(domain="walker", scale="smoke", root=tmp_path / f"run{workers}", quiet=True)
        write_data(run.root, episodes=2)
        settings = config().model_copy(update={"workers": workers})
        made.append(embed.run(settings, run, backbone=str(tmp_path / "tiny-clip"))[0])
    assert files_of(made[0]) == files_of(made[1])


def test_probe_draws_a_sheet(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(run.root, "expert-walk", episodes=1, first=10, task="walk")
    embed.run(config(), dataclasses.replace(run, quiet=False), probe=["lying down", r"run for $\x$ or $1"])
    path = run.root / "report" / "probe-offline.png"
    assert str(path) in capsys.readouterr().out
    picture = iio.imread(path)
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 10


def interrupted(run: Run, section: embed.Config, backbone: str, when: Callable[[], bool]) -> int:
    """Start the stage in a process of its own, send it SIGTERM once `when` holds; returns the exit code.

    The process encodes slowly, so that there is something left to stop.
    """
    code = (
        "import json, sys, time; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from stages import embed; from stages.runtime.config import Run\n"
        "from stages.runtime.errors import Interrupted\n"
        "from stages.backbones import base\n"
        "encode = base.Backbone.encode_video\n"
        "base.Backbone.encode_video = lambda self, x: (time.sleep(0.3), encode(self, x))[1]\n"
        "args = embed.Config(**json.loads(sys.argv[1])), Run('walker', 'smoke', Path(sys.argv[2]), quiet=True)\n"
        "try: embed.run(*args, backbone=sys.argv[3])\n"
        "except Interrupted as stop: sys.exit(stop.exit_code)\n"
    )
    words = [sys.executable, "-c", code, json.dumps(section.model_dump()), str(run.root), backbone]
    process = subprocess.Popen(words, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 200
    while not when() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    return process.wait()


def test_training_stopped_by_a_signal_goes_on_bit_for_bit(run: Run, tmp_path: Path) -> None:
    section = config(updates=60, checkpoint_every=3)
    checkpoint = run.root / "backbone.checkpoint" / "checkpoint.json"
    assert interrupted(run, section, "offline", checkpoint.exists) == 128 + signal.SIGTERM
    assert not (run.root / "backbone").exists()
    assert 0 < json.loads(checkpoint.read_text())["step"] < 60
    resumed = embed.run(section, run)
    assert not checkpoint.exists()
    whole = dataclasses.replace(run, root=tmp_path / "whole")
    write_data(whole.root)
    assert files_of(embed.run(section, whole)[0]) == files_of(resumed[0])
    lines = (run.root / "backbone.log" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps)) and steps[-1] == 60


def test_killed_after_the_last_update_training_ends_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update is one after which a checkpoint would be due; the artifact also records its losses."""
    section = config(updates=6, checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(embed.artifacts, "save", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            embed.run(section, run)
    resumed = embed.run(section, run)
    whole = dataclasses.replace(run, root=tmp_path / "whole")
    write_data(whole.root)
    undisturbed = embed.run(section, whole)
    assert resumed[0].meta["inputs"] == undisturbed[0].meta["inputs"]
    towers = [artifacts.load(r.root / "backbone").meta for r in (run, whole)]
    assert towers[0]["extra"]["losses"] and towers[0]["id"] == towers[1]["id"]


def test_a_signal_during_the_last_update_keeps_the_tower(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    section, draw = config(updates=3), embed.draw_lesson

    def draw_and_stop(lessons: Any, seed: int, step: int, *sizes: int) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(lessons, seed, step, *sizes)

    monkeypatch.setattr(embed, "draw_lesson", draw_and_stop)
    with pytest.raises(Interrupted, match=r"SIGTERM.*bitagent embed"):
        embed.run(section, run)
    assert (run.root / "backbone").exists() and not (run.root / "embeddings").exists()


def test_embedding_stopped_by_a_signal_goes_on(run: Run, tmp_path: Path) -> None:
    save_tiny("xclip", tmp_path / "tiny")
    name = str(tmp_path / "tiny")
    partial = run.root / "embeddings" / backbone_folder(name) / "random.partial"
    assert interrupted(run, config(), name, (partial / "rows.f16").exists) == 128 + signal.SIGTERM
    done = json.loads((partial / "progress.json").read_text())["episodes"]
    assert 0 < done < 3
    before = np.fromfile(partial / "rows.f16", np.float16).reshape(3 * ROWS, -1)[: done * ROWS]
    made = embed.run(config(), run, backbone=name)[0]
    assert not partial.exists()
    dataset = Dataset.open([run.root / "data" / "random"], "walker", [made.path])
    np.testing.assert_array_equal(dataset.rows("embedding", np.arange(3 * ROWS))[: len(before)], before)
    whole = dataclasses.replace(run, root=tmp_path / "whole")
    write_data(whole.root)
    assert files_of(embed.run(config(), whole, backbone=name)[0]) == files_of(made)
