"""Whole updates and what surrounds them on fake CUDA tensors: a process of its own, see test_cuda_fake.py.

    LD_PRELOAD=fake_cuda.so python -m tests.cuda_fake.worker pretrain:bitagent behave:genrl

Prints {name: error, or "" when all is well} as JSON.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitagent_cli import presets
from bitagent_cli.bench import train as bench
from bitagent_cli.bench.kernels import count_kernels
from stages import behave, methods, pretrain, transfer
from stages.backbones.base import Backbone
from stages.core.actor_critic import ActorCritic
from stages.core.backward_path import BackwardPath
from stages.core.behavior import Behavior, draw_batch
from stages.core.joint_model import JointModel
from stages.core.latents import Outcomes
from stages.core.world_model import Noise, WorldModel
from stages.methods.model_free import AGENTS, PixelLearner
from stages.policies.policy import Acting, LatentPolicy
from stages.runtime.distributed import World
from stages.runtime.update import Update, make_optimizer, make_update, set_lr
from tests.cuda_fake.strict import CUDA, NotOneDevice, Strict, fake_cuda

PLACE = World(0, 1, CUDA)
DIM_E, ACTIONS, ROWS = 32, 6, 14
GROUNDINGS = ("bitagent", "ablation-base", "bitagent-no-tamf", "genrl", "founder", "wm-clip")


def preset(method: str = "bitagent", *settings: str, scale: str = "smoke") -> presets.Preset:
    given = () if scale == "paper" else ("behave.actor_critic.imagination=1", "behave.horizon=3")  # short
    off = ("pretrain.compile=off", "behave.compile=off", *given)
    return presets.resolve("walker", scale, [*off, *settings], method)


def make_model(method: str, *settings: str) -> WorldModel:
    p = preset(method, *settings)
    with torch.device(CUDA):
        return methods.build(method, p.model, DIM_E, ACTIONS, methods.constants_of(method, p.groundings))


def pretraining(method: str, *settings: str, model: WorldModel | None = None) -> None:
    """Two updates of a method's model."""
    config = preset(method, *settings).pretrain
    model = model or make_model(method, *settings)
    batch, _, update = bench.joint_update(config, model, PLACE)
    twice(update, batch)


def twice(update: Update, batch: dict[str, Tensor]) -> None:
    """The second one finds gradients and an optimizer's state."""
    with Strict():
        for _ in range(2):
            assert all(term.device == CUDA for term in update(batch).values())


def behaviour(method: str, *settings: str, scale: str = "smoke") -> None:
    """Encoding, rewards of the data, and two updates under two prompts."""
    p = preset(method, *settings)
    config, dataset = p.behave, fake_dataset()
    model = make_model(method, *settings).requires_grad_(False)
    with torch.no_grad(), Strict():
        prompts = model.task(F.normalize(torch.randn(2, DIM_E, device=CUDA), dim=-1))
    modes = torch.zeros(dataset.n_frames, p.model.classes, dtype=torch.int16)
    with Strict(uploads=True):
        latents = behave.encode_data(model, dataset, modes, prompts, config.horizon, CUDA)
    assert {x.device for x in vars(latents).values()} == {CUDA}
    with torch.device(CUDA):
        learner = ActorCritic(model.dim_policy, model.dim_action, config.actor_critic)
    behavior = Behavior(model, learner, prompts, config, Noise(CUDA), None)
    rows = torch.zeros(2, ROWS, dtype=torch.long, device=CUDA)
    with Strict(), torch.no_grad():  # as `data_outcomes` reads the reward along each stretch
        states = latents.state(rows[:, : config.horizon + 1], rows[:, : config.horizon + 1])
        behavior.reward(prompts.rows(rows[:, 0]), states, latents.action[rows[:, : config.horizon]])
        ones = torch.ones(2 * ROWS, device=CUDA)
        found = Outcomes(torch.zeros(2, 2 * ROWS, device=CUDA), rows.flatten(), ones, ones[:2], ones[:2])
    halves = (learner.actor, learner.values)
    actor, critic = (make_optimizer(list(half.parameters()), config.lr, 0.0) for half in halves)
    pairs = [(actor, config.clip), (critic, config.clip)]
    update = make_update(behavior, pairs, CUDA, bf16=config.bf16, compiled=False, after=learner.update_slow)
    set_lr(actor, 1e-3)
    with Strict():
        batch = draw_batch(latents, found, config, behavior.noise, 2)
    twice(update, dict(batch))
    twice(update, {"prompt": batch["prompt"]})  # without data
    if isinstance(model, JointModel):  # what the policy is imagined to do teaches the text imagination
        path = BackwardPath(behavior)
        language = make_optimizer(list(path.language.parameters()), 1e-4, 0.0)
        refine = make_update(path, [(language, config.clip)], CUDA, bf16=config.bf16, compiled=False)
        twice(refine, dict(batch))
        with Strict():
            path.refresh()


def dynamics() -> None:
    """Two updates of the dynamics alone, on codes of frames."""
    p = preset()
    model, config = make_model("bitagent"), p.pretrain
    optimizer = make_optimizer(list(model.dynamics()), config.dynamics.lr, config.weight_decay)
    update = pretrain.dynamics_update(model, bench.synthetic_labels(model, CUDA), optimizer, config, PLACE)
    shape = (config.dynamics.batch, config.dynamics.length)
    batch = {
        "modes": torch.zeros(*shape, p.model.classes, dtype=torch.long, device=CUDA),
        "action": torch.zeros(*shape, ACTIONS, device=CUDA),
        "is_first": torch.zeros(shape, dtype=torch.bool, device=CUDA),
        "embedding": torch.randn(*shape, DIM_E, device=CUDA).half(),
        "task": torch.zeros(shape[0], dtype=torch.long, device=CUDA),
    }
    twice(update, batch)


def fake_dataset() -> Any:
    """Two episodes, as `encode_data` reads a dataset."""
    rows, info = (
        2 * ROWS,
        SimpleNamespace(start=np.array([0, ROWS]), length=np.array([ROWS, ROWS]), past=np.zeros(2, int)),
    )
    widths = {"action": (ACTIONS,), "embedding": (DIM_E,), "reward": (), "image": (3, 64, 64)}

    def read(key: str, index: np.ndarray) -> np.ndarray:
        kind = {"image": np.uint8, "embedding": np.float16}.get(key, np.float32)
        return np.zeros((*index.shape, *widths[key]), kind)

    parts = [SimpleNamespace(source=source, frames=ROWS) for source in ("random", "branch")]
    return SimpleNamespace(n_frames=rows, rows=read, episode_info=info, parts=parts)


def acting(method: str) -> None:
    """Three steps of two environments."""
    model = make_model(method)
    with torch.device(CUDA):
        learner = ActorCritic(model.dim_policy, model.dim_action, preset().behave.actor_critic)
    embedding = torch.randn(1, DIM_E)
    policy = LatentPolicy(
        model, learner.actor, FakeBackbone(), embedding, 64, Acting("cuda", semantics_every=2, sample=True)
    )
    for _ in range(3):
        image = torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=CUDA)
        with Strict():
            assert policy.step(image, image).shape == (2, ACTIONS)


class FakeBackbone(Backbone):
    id, dim, frame_size, device = "fake", DIM_E, 64, "cuda"

    def _video(self, frames: Tensor) -> Tensor:
        return frames.flatten(2).float().mean(1)[:, :DIM_E]

    def _text(self, texts: list[str]) -> Tensor:
        raise NotImplementedError

    layers = linears = _text  # type: ignore[assignment]


def transferring() -> None:
    """A model made on the CPU takes another body's weights, moves to the GPU and trains."""
    p = preset()
    source, target = (methods.build("bitagent", p.model, DIM_E, actions, {}) for actions in (ACTIONS + 2, ACTIONS))
    transfer.carry_over(target, source.state_dict(), where=None)  # type: ignore[arg-type]
    pretraining("bitagent", model=target.to(CUDA))


def model_free(method: str) -> None:
    """Two updates from pixels: of critics alone, and of the actor too. Their noise is drawn on the CPU."""
    config = preset(method).offline_rl
    learner = PixelLearner(config, method, ACTIONS, 0, CUDA, lambda batch: batch["reward"])
    length = config.stack + config.n_step
    batch = {
        "image": torch.zeros(config.td3.batch, length, 3, 64, 64, dtype=torch.uint8, device=CUDA),
        "action": torch.zeros(config.td3.batch, length, ACTIONS, device=CUDA),
        "is_first": torch.zeros(config.td3.batch, length, dtype=torch.bool, device=CUDA),
        "is_terminal": torch.zeros(config.td3.batch, length, dtype=torch.bool, device=CUDA),
        "reward": torch.zeros(config.td3.batch, length, device=CUDA),
    }
    with Strict(uploads=True):
        for step in (1, 2):
            assert all(term.device == CUDA for term in learner.update(batch, step).values())


def mistake(make: Callable[[Tensor], object]) -> None:
    """What Strict is for."""
    x = torch.ones(3, device=CUDA)
    try:
        with Strict():
            make(x)
    except (NotOneDevice, RuntimeError):
        return
    raise AssertionError("went unseen")


def kernels(loop: str, most: int) -> None:
    """An update's kernels at the paper's sizes, eager."""
    p = preset(scale="paper")
    with torch.device(CUDA):
        model = methods.build("bitagent", p.model, 512, ACTIONS, {})
    made = (
        bench.joint_update(p.pretrain, model, PLACE)
        if loop == "pretrain"
        else bench.behave_update(p.behave, model, PLACE)
    )
    batch, _, update = made
    with Strict():
        update(batch)
        found = count_kernels(lambda: update(batch))
    print(f"{loop}: {found} kernels", file=sys.stderr)
    assert found <= most, f"{found} kernels an update, {most} are allowed"


CHECKS: dict[str, Callable[[], None]] = {
    **{f"pretrain:{m}": partial(pretraining, m) for m in GROUNDINGS},
    **{f"behave:{m}": partial(behaviour, m) for m in GROUNDINGS},
    **{f"act:{m}": partial(acting, m) for m in ("bitagent", "genrl")},
    **{f"model-free:{m}": partial(model_free, m) for m in AGENTS},
    "behave:text actions": partial(behaviour, "bitagent", "model.text_actions=policy"),
    "dynamics": dynamics,
    "transfer": transferring,
    "mistake:item": partial(mistake, lambda x: x.sum().item()),
    "mistake:cpu": partial(mistake, lambda x: x.cpu()),
    "mistake:mixed": partial(mistake, lambda x: x + torch.ones(3)),
    "mistake:constant": partial(mistake, lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device)),
    "mistake:data-dependent": partial(mistake, lambda x: x[x > 0]),
    "kernels:pretrain": partial(kernels, "pretrain", 7500),
    "kernels:behave": partial(kernels, "behave", 3000),
}


def main(names: list[str]) -> dict[str, str]:
    found = {}
    with fake_cuda():
        for name in names:
            try:
                CHECKS[name]()
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:] or list(CHECKS))))
