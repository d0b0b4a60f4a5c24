"""Where the time of a collection goes, on one core: what each part takes, and how near it comes to what it could."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import torch

from bitagent_cli.bench.render import random_states, rendering_speed
from bitagent_cli.bench.train import count_flops, matmul_tflops, time_calls
from stages import worlds
from stages.agents.expert import ExpertConfig, Replay, actor_policy, task_decisions
from stages.agents.replay import DECISIONS, play_episode, random_policy
from stages.methods.td3 import TD3, actor_loss, critic_loss
from stages.worlds.render import Renderer
from stages.worlds.tasks import ACTION_REPEAT, Env, make_env, task_names

EPISODES = 2  # of random actions, behind the replay that updates are timed on
FRAMES = 300


def measure_collection(config: ExpertConfig, domain: str, updates: int = 200) -> dict[str, Any]:
    """Measure an expert's update, its acting, physics and drawing, and what the preset's experts of a domain add up to.

    Returns:
        {"ms": {part: ms a decision}, "share": {part: of what is attainable}, "frames_per_second", "expert_minutes":
        {task: minutes of its training on one core}, "matmul_tflops"}. An update is compared with large matrix products,
        physics with MuJoCo's bare steps.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(config, domain, updates)
    finally:
        torch.set_num_threads(threads)


def _measured(config: ExpertConfig, domain: str, updates: int) -> dict[str, Any]:
    env = make_env(domain, task_names(domain)[0])
    agent = TD3(config.td3, env.observation_dim, env.action_dim, seed=0)
    replay, physics = _replay(config, env)
    generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    step = iter(range(10**9))
    update = time_calls(
        lambda: agent.update(replay.sample(config.td3.batch, generator), next(step), generator), cpu, updates
    )
    act, observation = actor_policy(agent, np.zeros((DECISIONS, env.action_dim))), replay.obs[0].numpy()
    acting = time_calls(lambda: act(observation, 0), cpu, updates)
    ceiling = matmul_tflops(cpu)
    parts = {"update": update * config.updates_per_decision, "acting": acting, "physics": physics}
    decision = sum(parts.values())
    return {
        "ms": {name: round(seconds * 1e3, 3) for name, seconds in parts.items()},
        "share": {
            "update": round(_update_flops(agent, replay, generator) / update / 1e12 / ceiling, 3),
            "physics": round(_bare_physics(env) / physics, 3),
        },
        "frames_per_second": rendering_speed(Renderer(domain).render, random_states(domain, FRAMES)),
        "expert_minutes": {t: round(task_decisions(config, t) * decision / 60, 1) for t in task_names(domain)},
        "matmul_tflops": ceiling,
    }


def _replay(config: ExpertConfig, env: Env) -> tuple[Replay, float]:
    """The replay of random episodes, and the seconds of a decision in them, of the fastest."""
    replay = Replay(EPISODES, env.observation_dim, env.action_dim, config.n_step, config.td3.discount)
    seconds = []
    for seed in range(EPISODES):
        began = time.perf_counter()
        played = play_episode(env, seed, random_policy(env, seed, 0.0))
        seconds.append((time.perf_counter() - began) / DECISIONS)
        episode = played.episode
        replay.add(played.observation, episode.action, episode.reward, episode.is_terminal)
    return replay, min(seconds)


def _update_flops(agent: TD3, replay: Replay, generator: torch.Generator) -> float:
    """Floating-point operations of an update: critics and targets always, the actor every `actor_every` times."""
    batch = replay.sample(agent.config.batch, generator)
    target = torch.zeros(len(batch["reward"]))
    critics = count_flops(lambda: critic_loss(agent.critics, batch["obs"], batch["action"], target))
    actor = count_flops(lambda: actor_loss(agent.actor, agent.critics, batch["obs"]))
    targets = _forward_flops(lambda: agent.target(batch, torch.zeros_like(batch["action"])))
    return critics + targets + actor / agent.config.actor_every


def _forward_flops(call: Callable[[], object]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _bare_physics(env: Env) -> float:
    """Seconds that MuJoCo's own steps of a decision take, under the controls it stands at."""
    model, data = env.physics_model, mujoco.MjData(env.physics_model)
    substeps = round(ACTION_REPEAT * worlds.BODIES[env.domain].control_timestep / model.opt.timestep)
    began = time.perf_counter()
    for _ in range(DECISIONS):
        mujoco.mj_step(model, data, substeps)
    return (time.perf_counter() - began) / DECISIONS
