"""Imagination is judged by what really follows, and a model that knows it gets full marks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.backbones import load_backbone
from stages.core.actor_critic import Actor, Values
from stages.core.bitagent import BiTAgent
from stages.core.settings import ActorCriticConfig
from stages.core.world_model import Noise, State, TaskContext
from stages.data.episodes import Dataset
from stages.report import counterfactual, promises
from stages.report.counterfactual import CONTEXT, HORIZON, KINDS, STEPS, Futures, Judge
from stages.report.promises import Promise
from tests.core.helpers import model_config
from tests.core.test_actor_critic import CONFIG
from tests.data.real_data import make_data, play
from tests.stages import small_run

DIM_E = 9
ROWS = np.array([CONTEXT - 1, CONTEXT + 3])  # the first that has a whole context, and a later one


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Of a random model, on a real episode of the walker that an untrained backbone has embedded."""
    run = small_run.make_run(tmp_path_factory.mktemp("counterfactual") / "walker-smoke")
    data = make_data(run.root, task="walk", episodes=1, rows=CONTEXT + HORIZON + 6)
    small_run.make_backbone(run)
    (embeddings,) = small_run.make_embeddings(run)
    dataset = Dataset.open([data.path], "walker", [embeddings.path])
    torch.manual_seed(0)
    model = BiTAgent(model_config(), DIM_E, dataset.action_dim).requires_grad_(False).eval()
    backbone = load_backbone("offline", run.root, "cpu")
    prompt = model.task(F.normalize(torch.randn(1, DIM_E), dim=-1))
    return Judge(model, backbone, backbone.frame_size, dataset, prompt, "both")


@pytest.fixture(scope="module")
def action(judge: Judge) -> np.ndarray:
    return counterfactual.other_actions(judge.dataset, ROWS, np.random.default_rng(0))


@pytest.fixture(scope="module")
def found(judge: Judge, action: np.ndarray) -> Futures:
    return judge.futures(ROWS, action)


def along_the_data(judge: Judge, row: int) -> np.ndarray:
    """The reward (H,) of the data after `row`, read from its own frames, embeddings and actions."""
    length = CONTEXT + HORIZON
    image, action, e = (
        torch.from_numpy(judge.dataset.windows(name, np.array([row - CONTEXT + 1]), length))
        for name in ("image", "action", "embedding")
    )
    is_first, e = torch.zeros(1, length, dtype=torch.bool), judge.model.adapter(F.normalize(e.float(), dim=-1))
    state = judge.model.observe(image, action, is_first, e, judge.prompt, None).state
    after = state.map(lambda x: x[:, CONTEXT - 1 :])
    return judge.model.reward(judge.prompt, after, action[:, CONTEXT:], judge.space)[0].numpy()


# ---------------------------------------------------------------------------- what really follows


def test_the_data_s_own_actions_really_earn_what_the_data_earn(judge: Judge, found: Futures) -> None:
    """Up to 2e-7, measured, where a reward moves by up to 0.7 from one frame to the next."""
    for real, row in zip(found.real[:, 0], ROWS, strict=True):
        wanted = along_the_data(judge, int(row))
        np.testing.assert_allclose(real, wanted, atol=1e-5)
        assert np.abs(np.diff(wanted)).max() > 0.1, "else any reward would do"
    assert np.abs(found.real[:, 3] - found.real[:, 0]).max() > 0.1, "other actions lead elsewhere"


@pytest.mark.parametrize("domain, task", [("walker", "walk"), ("quadruped", "walk")])
def test_the_body_goes_on_as_it_did_in_the_data(domain: str, task: str) -> None:
    """Of a quadruped, a stored state alone would not do: its actuators have a state of their own."""
    episode, row = play(domain, task, CONTEXT + 12, seed=3), CONTEXT + 3
    assert episode.state is not None
    past = slice(row - CONTEXT + 1, row + 1)
    led, after = episode.action[past], episode.action[row + 1 : row + 5]
    env, (body,) = counterfactual.bodies(domain, episode.state[None, past], led[None])
    states = counterfactual.follow(env, body, after)
    wanted, moved = episode.state[row + 1 : row + 5], np.abs(np.diff(episode.state[row : row + 5], axis=0)).max()
    assert np.abs(states - wanted).max() < 0.01 * moved


def test_every_future_begins_anew(judge: Judge, action: np.ndarray, found: Futures) -> None:
    """What a future earns depends on neither its place among the others nor the size of a batch."""
    order = [2, 0, 3, 1]
    turned = judge.futures(ROWS, action[:, order])
    np.testing.assert_allclose(turned.real, found.real[:, order], atol=1e-5)
    alone = judge.futures(ROWS[1:], action[1:])
    np.testing.assert_allclose(alone.real, found.real[1:], atol=1e-5)


def test_the_model_sees_just_the_context(judge: Judge) -> None:
    data = judge.dataset
    row = int(ROWS[1])
    first = row - CONTEXT + 1
    asked: list[tuple[str, int, int]] = []
    windows = data.windows

    def watched(name: str, starts: np.ndarray, length: int) -> np.ndarray:
        asked.extend((name, int(start), int(start) + length - 1) for start in starts)
        return windows(name, starts, length)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "windows", watched)
        judge.seen(np.array([row]))
    assert {(name, start, last) for name, start, last in asked} == {
        (name, first, row) for name in ("image", "action", "embedding")
    }


# ---------------------------------------------------------------------------- what is imagined


def test_equal_actions_are_imagined_alike(judge: Judge, action: np.ndarray) -> None:
    """The futures of one row share their noise, so that no difference comes from chance."""
    same = judge.futures(ROWS, action[:, [0, 0, 3]])
    np.testing.assert_allclose(same.imagined[:, 0], same.imagined[:, 1], atol=1e-6)
    np.testing.assert_allclose(same.entropy[:, 0], same.entropy[:, 1], atol=1e-4)
    assert np.abs(same.imagined[:, 2] - same.imagined[:, 0]).max() > 1e-4
    np.testing.assert_allclose(same.astray[..., 0], 0, atol=1e-6, err_msg="the first step is the filter's")
    assert (same.astray[..., 1:] > 0.01).all(), "an untrained model does not foresee its filter"
    classes, categories = judge.model.rssm.shape
    assert ((same.entropy > 0) & (same.entropy <= classes * np.log(categories) + 1e-4)).all()


def test_a_model_that_imagines_what_happens_is_perfect(
    judge: Judge, action: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered: list[State] = []
    follow = Judge.filtered

    def watched(self: Judge, *given: Any) -> State:
        filtered.append(follow(self, *given))
        return filtered[-1]

    def imagine(
        start: State, act: Any, horizon: int, task: TaskContext, noise: Noise | None
    ) -> tuple[State, Tensor, Tensor]:
        states = filtered[-1]
        torch.testing.assert_close(states.h[:, 0], start.h)
        moves = torch.stack([act(None, t) for t in range(horizon)], 1)
        return states, moves, torch.zeros(len(start.h), horizon, *judge.model.rssm.shape)

    monkeypatch.setattr(Judge, "filtered", watched)
    monkeypatch.setattr(judge.model, "imagine", imagine)
    table = counterfactual.agreement(judge.futures(ROWS, action))
    for kind in KINDS:
        for step in map(str, STEPS):
            row = table[kind][step]
            assert row["gap"] == 0 and row["correlation"] == 1
            assert row["slope"] == (None if kind == "data" else 1)
            assert row["astray"] == 0
    pushed = judge.futures(ROWS, counterfactual.pushed_actions(action[:, 0]))
    assert counterfactual.gradients(pushed) == {"cosine": 1.0, "norm_ratio": 1.0}


# ---------------------------------------------------------------------------- numbers


def by_hand(real: np.ndarray, imagined: np.ndarray) -> Futures:
    """Futures (N, K, 16) with these rewards (N, K) at step 8 and none before or after."""
    at = np.zeros((*real.shape, HORIZON))
    at[..., 7] = 1
    return Futures(real[..., None] * at, imagined[..., None] * at, at, at)


def test_agreement_by_hand() -> None:
    real = np.array([[1.0, 0.0, 3.0, 1.0], [2.0, 2.0, 0.0, 0.0], [3.0, 1.0, 1.0, 3.0]])
    imagined = real.copy()
    imagined[:, 1] = real[:, 0] + (real[:, 1] - real[:, 0]) / 4  # a quarter of the change is seen
    imagined[:, 2] = -real[:, 2]
    imagined[:, 3] = 5
    table = counterfactual.agreement(by_hand(real, imagined))
    same = {"real": 2.0, "imagined": 2.0, "gap": 0.0, "correlation": 1.0, "slope": None, "astray": 1.0}
    assert table["data"]["8"] == same
    assert table["noise"]["8"]["slope"] == 0.25
    assert table["noise"]["8"]["gap"] == 0.75, "(1 - 1/4) of a mean change of -1"
    assert table["another"]["8"]["correlation"] == -1
    assert table["uniform"]["8"]["correlation"] is None, "a constant goes together with nothing"
    assert table["uniform"]["8"]["gap"] == round(5 - 4 / 3, 3)
    assert table["noise"]["4"] == {**dict.fromkeys(same, 0), "correlation": None, "slope": None}


def test_gradients_by_hand() -> None:
    """Two dimensions: the first row agrees at half the length, the second points elsewhere."""
    real, imagined = np.zeros((2, 4)), np.zeros((2, 4))
    real[0], imagined[0] = [1, -1, 0, 0], [0.5, -0.5, 0, 0]
    real[1], imagined[1] = [1, -1, 0, 0], [0, 0, 0.5, -0.5]
    assert counterfactual.gradients(by_hand(real, imagined)) == {"cosine": 0.5, "norm_ratio": 0.5}


def test_pushes_stay_within_what_a_body_can_do() -> None:
    action = np.zeros((1, HORIZON, 2))
    action[..., 1] = 0.9
    pushed = counterfactual.pushed_actions(action)
    assert pushed.shape == (1, 4, HORIZON, 2)
    np.testing.assert_allclose(pushed[0, :, 0], [[0.2, 0.9], [-0.2, 0.9], [0, 1], [0, 0.7]])
    np.testing.assert_array_equal(pushed[0, :, counterfactual.PUSH_STEPS :], action.repeat(4, 0)[:, 4:])


def test_actions_of_each_kind(judge: Judge, action: np.ndarray) -> None:
    own = judge.dataset.windows("action", ROWS + 1, HORIZON)
    assert action.shape == (2, len(KINDS), HORIZON, judge.dataset.action_dim)
    np.testing.assert_array_equal(action[:, 0], own)
    np.testing.assert_array_equal(action[:, 2], own[::-1])
    assert 0.1 < (action[:, 1] - own).std() < 0.35 and np.abs(action).max() <= 1


def test_rows_have_their_context_and_their_future(judge: Judge) -> None:
    info = judge.dataset.episode_info
    drawn = counterfactual.draw_rows(judge.dataset, np.array([0]), 500, np.random.default_rng(0))
    assert drawn.min() == info.start[0] + CONTEXT - 1
    assert drawn.max() == info.start[0] + info.length[0] - 1 - HORIZON


# ---------------------------------------------------------------------------- what a policy is promised


@pytest.fixture
def parts(judge: Judge) -> tuple[Actor, Values]:
    """An untrained actor, and values that tell states apart."""
    torch.manual_seed(1)
    sizes = (judge.model.dim_policy, judge.model.dim_action, ActorCriticConfig(**CONFIG))
    actor, values = Actor(*sizes), Values(*sizes)
    for parameter in values.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return actor, values


def test_a_policy_that_does_what_the_data_did_earns_what_the_data_earned(judge: Judge) -> None:
    moves = torch.from_numpy(judge.dataset.windows("action", ROWS + 1, HORIZON)).float()
    task = judge.prompt.rows(torch.zeros(len(ROWS), dtype=torch.long))
    states, taken = promises.lived(judge, ROWS, judge.seen(ROWS), lambda _, step: moves[:, step], task)
    assert torch.equal(taken, moves)
    for real, row in zip(judge.model.reward(task, states, moves, judge.space).numpy(), ROWS, strict=True):
        np.testing.assert_allclose(real, along_the_data(judge, int(row)), atol=1e-5)


def test_a_model_that_imagines_what_happens_promises_no_more(
    judge: Judge, parts: tuple[Actor, Values], monkeypatch: pytest.MonkeyPatch
) -> None:
    def imagine(start: State, act: Any, horizon: int, task: TaskContext, noise: Noise) -> tuple[State, Tensor, None]:
        return *promises.lived(judge, ROWS, start, act, task), None

    told = promises.promise(judge, *parts, ROWS, seed=0)
    assert np.abs(told.value[0] - told.value[1]).max() > 1e-3, "an untrained model does not foresee what happens"
    monkeypatch.setattr(judge.model, "imagine", imagine)
    found = promises.promise(judge, *parts, ROWS, seed=0)
    np.testing.assert_array_equal(found.reward[0], found.reward[1])
    assert [row["value_gap"] for row in found.rows()] == [0, 0, 0]
    np.testing.assert_allclose(found.reward[0], told.reward[0], atol=1e-6, err_msg="the simulator plays alike twice")


def test_rows_by_hand() -> None:
    """At the second of STEPS the imagined values are 3 above real ones of spread 2."""
    reward, value = np.zeros((2, 2, HORIZON)), np.zeros((2, 2, HORIZON))
    at = STEPS[1] - 1
    reward[:, :, at] = [[0, 1], [1, 2]]
    value[:, :, at] = [[1, 5], [4, 8]]
    wanted = {"reward_real": 0.5, "reward_imagined": 1.5, "value_real": 3, "value_imagined": 6, "value_gap": 1.5}
    assert Promise(reward, value).rows()[1] == {"step": STEPS[1], **wanted}
