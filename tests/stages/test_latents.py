"""The data as latents of a model: encoded once, drawn from, and labelled with rewards and outcomes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages import behave, pretrain
from stages.backbones.embeddings import open_training_data
from stages.behave import data_modes, encode_data, posterior_modes
from stages.core.latents import Latents, label_rewards, outcomes, sharpened
from stages.core.world_model import Noise, State, WorldModel
from stages.data.episodes import Dataset
from stages.methods import open_model
from stages.policies.goals import Ask
from stages.policies.policy import LatentPolicy, Policy
from stages.runtime import artifacts, storage, update
from stages.runtime.config import Run
from stages.runtime.errors import BadInput
from tests.core.helpers import model_config, unit
from tests.stages import small_run
from tests.stages.test_behave import config as behave_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a barely trained model, whose two datasets have episodes of different lengths."""
    made = small_run.make_run(tmp_path_factory.mktemp("latents") / "walker-smoke")
    small_run.make_uneven_inputs(made)
    pretrain.run(pretrain.Sections(small_run.pretrain_config(updates=2), model_config()), made)
    return made


def test_latents_are_the_states_the_policy_would_filter(run: Run) -> None:
    """Every row, under every prompt, equals stepping through its episode from its first frame."""
    model, dataset = open_model(small_run.model_artifact(run)), open_training_data(small_run.model_artifact(run), run)
    prompts = model.task(unit(2, generator=torch.Generator().manual_seed(3)))
    found = encode_data(model, dataset, read(model, dataset), prompts, 4, torch.device("cpu"))
    assert found.h.shape == (2, dataset.n_frames, 16)
    lengths = []
    for start, length in zip(dataset.episode_info.start, dataset.episode_info.length, strict=True):
        lengths.append(int(length))
        rows = np.arange(start, start + length)
        image, action = torch.from_numpy(dataset.rows("image", rows)), torch.from_numpy(dataset.rows("action", rows))
        e = model.adapter(torch.from_numpy(dataset.rows("embedding", rows)).float())
        for k in range(2):
            state = None
            for i, row in enumerate(rows):
                one = prompts.rows(torch.tensor([k]))
                state = model.observe_step(image[i : i + 1], state, action[i : i + 1], e[i : i + 1], one)
                torch.testing.assert_close(found.h[k, row], state.h[0].half(), rtol=2e-3, atol=2e-3)
                torch.testing.assert_close(found.z[k, row], state.z[0].half(), rtol=2e-3, atol=2e-3)
                torch.testing.assert_close(found.e[row], state.e[0].half(), rtol=2e-3, atol=2e-3)
    assert sorted(lengths) == [9, 9, 9, 14, 14, 14]
    np.testing.assert_array_equal(found.action, dataset.rows("action", np.arange(dataset.n_frames)))
    np.testing.assert_array_equal(found.reward, dataset.rows("reward", np.arange(dataset.n_frames)))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_policy_that_acts_meets_the_states_it_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    """Whatever precision the updates have: a stored episode, encoded for behaviour and filtered frame by frame by the
    policy, has the same posterior modes, and states that differ by the rounding to float16 alone."""
    monkeypatch.setattr(update, "fast_bf16", lambda _: True)  # autocast is on, on any CPU
    run = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_uneven_inputs(run)
    pretrain.run(pretrain.Sections(small_run.pretrain_config(updates=2, bf16=bf16), model_config()), run)
    learned: list[Latents] = []
    monkeypatch.setattr(behave, "encode_data", lambda *args: learned.append(encode_data(*args)) or learned[-1])
    made = behave.run(behave_config(updates=2, bf16=bf16), run, Ask("walk"))
    (latents,) = learned
    (modes,) = artifacts.load(run.root / "latents" / "bitagent-s0", "latents").tensors("posterior").values()

    policy, dataset = Policy.load(made.path), open_training_data(small_run.model_artifact(run), run)
    assert isinstance(policy, LatentPolicy)
    read, posterior = list[Tensor](), policy.model.rssm.posterior
    monkeypatch.setattr(policy.model.rssm, "posterior", lambda image: read.append(posterior(image)) or read[-1])
    for number in range(dataset.n_episodes):
        episode, first = dataset.episode(number), int(dataset.episode_info.start[number])
        assert episode.image is not None
        policy.reset()
        for row, (frame, action) in enumerate(zip(episode.image, episode.action, strict=True), first):
            policy.action = torch.tensor(action)[None]  # the data's, whatever the policy would have done
            policy.act(frame)
            assert policy.state is not None
            torch.testing.assert_close(read[-1].argmax(-1)[0], modes[row].long())
            for name in ("h", "z", "e"):
                found, wanted = getattr(policy.state, name)[0], getattr(latents, name)[..., row, :].reshape(-1)
                torch.testing.assert_close(found, wanted.float(), rtol=2e-3, atol=2e-3)


def test_a_policy_reads_the_backbone_as_often_as_it_read_the_data(tmp_path: Path) -> None:
    """Embedded at every fourth frame: the policy then holds e over the same frames as the data do."""
    run = small_run.make_run(tmp_path / "walker-smoke")
    small_run.make_data(run, "random")
    small_run.make_backbone(run)
    small_run.make_embeddings(run, stride=4)
    pretrain.run(pretrain.Sections(small_run.pretrain_config(updates=2), model_config()), run)
    made = behave.run(behave_config(updates=2), run, Ask(prompt="hold it"))
    policy, dataset = Policy.load(made.path), open_training_data(small_run.model_artifact(run), run)
    assert isinstance(policy, LatentPolicy) and policy.acting.semantics_every == 4
    frames = dataset.episode(0).image
    assert frames is not None
    found = []
    for frame in frames:
        policy.act(frame)
        assert policy.state is not None
        found.append(policy.state.e[0])
    stored = policy.model.adapter(torch.from_numpy(dataset.rows("embedding", np.arange(len(frames)))).float())
    torch.testing.assert_close(torch.stack(found), stored, rtol=2e-3, atol=2e-3)
    assert len(torch.unique(torch.stack(found), dim=0)) == 4  # 14 frames
    every = Policy.load(made.path, semantics_every=1)
    assert isinstance(every, LatentPolicy) and every.acting.semantics_every == 1


def test_frames_are_read_once_for_all_policies_of_a_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once more when the model has changed."""
    found, dataset = small_run.model_artifact(run), open_training_data(small_run.model_artifact(run), run)
    model, cpu = open_model(found), torch.device("cpu")
    modes = data_modes(model, found, dataset, run, cpu)
    assert torch.equal(modes, read(model, dataset))
    monkeypatch.setattr(behave, "posterior_modes", lambda *_, **__: 1 - modes.clamp(max=1))
    assert torch.equal(data_modes(model, found, dataset, run, cpu), modes)
    changed = dataclasses.replace(found, meta=found.meta | {"id": "0" * 16})
    assert torch.equal(data_modes(model, changed, dataset, run, cpu), 1 - modes.clamp(max=1))
    place = run.root / "latents" / "bitagent-s0"
    with artifacts.writing(place, "latents", domain="walker", config={}, seed=0, inputs=[changed]) as draft:
        storage.write_tensors(draft / "posterior.safetensors", {"modes": modes})  # of no known precision
    assert torch.equal(data_modes(model, changed, dataset, run, cpu), 1 - modes.clamp(max=1))
    for wrong in (modes[1:], modes + 100):
        monkeypatch.setattr(behave, "posterior_modes", lambda *_, wrong=wrong, **__: wrong)
        other = dataclasses.replace(found, meta=found.meta | {"id": f"{len(wrong):016}"})
        with pytest.raises(BadInput, match="it holds states"):
            data_modes(model, other, dataset, run, cpu)


def make_latents(run: Run, horizon: int) -> Latents:
    model, dataset = open_model(small_run.model_artifact(run)), open_training_data(small_run.model_artifact(run), run)
    return encode_data(model, dataset, read(model, dataset), model.task(unit(2)), horizon, torch.device("cpu"))


def read(model: WorldModel, dataset: Dataset) -> Tensor:
    return posterior_modes(model, dataset, torch.device("cpu"), quiet=True)


def test_drawn_rows_are_decisions_of_long_enough_episodes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behave, "EARLY", 3)
    latents = make_latents(run, 10)
    assert latents.episodes[:, 1].tolist() == [14, 14, 14]
    starts = latents.episodes[:, 0].tolist()
    assert latents.decisions.tolist() == [row for start in starts for row in range(start, start + 13)]
    assert latents.early.tolist() == [row for start in starts for row in range(start, start + 3)]
    torch.manual_seed(0)
    drawn = latents.draw(400, 0.5, Noise("cpu"))
    assert set(drawn.tolist()) == set(latents.decisions.tolist())
    assert 0.5 < np.isin(drawn.numpy(), latents.early.numpy()).mean() < 0.75  # half on purpose, 3 of 13 by chance


def test_rewards_are_read_over_stretches_that_cover_every_episode(run: Run) -> None:
    """A reward that tells row and prompt apart: every row but an episode's first is labelled once, as its own."""
    latents = make_latents(run, 5)
    latents.e = torch.arange(len(latents.e)).float()[:, None].half()
    seen: list[int] = []

    def reward(prompt: Tensor, state: State, action: Tensor) -> Tensor:
        rows = state.e[:, 1:, 0].long()  # (N, H)
        assert state.h.shape[:2] == (len(prompt), 6) and torch.equal(action, latents.action[rows])
        seen.extend(rows.flatten().tolist())
        return rows + 1000.0 * prompt[:, None]

    found = label_rewards(latents, reward, 5, rows_at_once=12)
    firsts = latents.episodes[:, 0]
    for k in range(2):
        wanted = torch.arange(found.shape[1]) + 1000.0 * k
        wanted[firsts] = 0
        assert torch.equal(found[k], wanted)
    assert set(seen) == set(range(found.shape[1])) - set(firsts.tolist())


def test_outcomes_are_the_next_rewards_of_the_same_episode_and_the_row_they_end_in(run: Run) -> None:
    latents = make_latents(run, 5)
    reward = torch.randn(2, len(latents.reward), generator=torch.Generator().manual_seed(0))
    found = outcomes(latents, reward, 0.9, 3, 0.0)
    reward = ((reward.T - found.mean) / found.spread).T
    for start, length in latents.episodes.tolist():
        for t in range(length - 1):
            row, steps = start + t, min(3, length - 1 - t)
            assert found.row[row] == row + steps and found.discount[row].item() == pytest.approx(0.9**steps)
            for k in range(2):
                wanted = sum(0.9**i * float(reward[k, row + 1 + i]) for i in range(steps))
                assert found.reward[k, row].item() == pytest.approx(wanted, abs=1e-5)


def test_outcomes_count_rewards_in_deviations_from_the_mean_of_the_rows_arrived_at(run: Run) -> None:
    latents = make_latents(run, 5)
    reward = 3 + 0.1 * torch.randn(2, len(latents.reward), generator=torch.Generator().manual_seed(0))
    reward[:, latents.episodes[:, 0]] = 0  # never arrived at
    found = outcomes(latents, reward, 0.9, 1, 0.0)
    arrived = reward[:, latents.decisions + 1]
    torch.testing.assert_close((found.mean, found.spread), (arrived.mean(1), arrived.std(1)))
    earned = found.reward[:, latents.decisions]
    torch.testing.assert_close(earned.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(earned.std(1), torch.ones(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sharpness", [0.3, 1.0])
def test_a_sharpened_reward_keeps_the_order_and_the_scale(run: Run, sharpness: float) -> None:
    """Of standard normal rewards: mean 0 and deviation 1 again, and a good reward farther above the mean."""
    normal = torch.randn(400_000, generator=torch.Generator().manual_seed(0)).sort().values
    sharp = sharpened(normal, sharpness)
    assert sharp.mean().item() == pytest.approx(0, abs=0.01) and sharp.std().item() == pytest.approx(1, abs=0.03)
    assert (sharp.diff() >= 0).all() and sharp[-1] > normal[-1]
    assert sharpened(normal, 0.0) is normal

    latents = make_latents(run, 5)
    reward = torch.randn(2, len(latents.reward), generator=torch.Generator().manual_seed(0))
    plain, found = (outcomes(latents, reward, 0.9, 1, s) for s in (0.0, sharpness))
    rows = latents.decisions
    torch.testing.assert_close(found.reward[:, rows], sharpened(plain.reward[:, rows], sharpness))
