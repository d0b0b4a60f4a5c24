"""What noise alone covers: the control that an explorer is held against.

python -m bitagent_cli.bench.noise_coverage walker 20      # domain, episodes; a Markdown table
"""

from __future__ import annotations

import sys

import numpy as np

from stages.agents.replay import DECISIONS, PolicyFunction, correlated_noise, derive_seed, play_episode
from stages.core.coverage import occupied_bins
from stages.worlds import tasks

CORRELATION = 0.5  # of the noise in time; the random source's
SCALES = (1.55, 100.0)  # standard deviations: an untrained explorer's, and one at which every action is an end


def noise_policy(noise: np.ndarray) -> PolicyFunction:
    """Noise (DECISIONS, A) as actions, clipped to [-1, 1]."""
    actions = np.clip(noise, -1.0, 1.0)
    return lambda observation, decision: actions[decision]


def covered(domain: str, scale: float, episodes: int) -> int:
    """Bins that episodes of Gaussian actions of standard deviation `scale`, clipped to [-1, 1], fall into."""
    env = tasks.make_env(domain, tasks.task_names(domain)[0])
    states: list[np.ndarray] = []
    for number in range(episodes):
        seed = derive_seed(0, domain, "random", number)
        noise = correlated_noise(np.random.default_rng(seed), DECISIONS, env.action_dim, CORRELATION)
        state = play_episode(env, seed, noise_policy(scale * noise)).episode.state
        assert state is not None
        states.append(state)
    return occupied_bins(domain, np.concatenate(states))


def print_table(domain: str, episodes: int) -> None:
    """Print a Markdown table, row by row as each is measured."""
    print("| standard deviation | episodes | occupied bins |\n| --- | --- | --- |")
    for scale in SCALES:
        print(f"| {scale} | {episodes} | {covered(domain, scale, episodes)} |", flush=True)


if __name__ == "__main__":
    print_table(sys.argv[1], int(sys.argv[2]))
