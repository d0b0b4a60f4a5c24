"""The world model that every grounding shares: filtering, imagination, and the two duties a grounding adds.

A grounding (BiTAgent, GenRL, FOUNDER, WM-CLIP) says how a prompt reaches the world model: by a loss in
pretraining and a reward in imagination. Notation and shapes are those of stages/core/joint_model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from stages.core.nets import ImageDecoder, sample_one_hot, unrolled
from stages.core.rssm import RSSM
from stages.core.settings import ModelConfig, ObjectiveConfig
from stages.runtime.errors import BadInput


@dataclass
class State:
    """Where a rollout stands: h (..., deter), z (..., dim_z) and the semantics e (..., dim_e) inside z."""

    h: Tensor
    z: Tensor
    e: Tensor

    @classmethod
    def read(cls, batch: Mapping[str, Tensor], prefix: str = "") -> State:
        """The state whose parts a batch holds under `prefix` and their letter."""
        return cls(batch[f"{prefix}h"], batch[f"{prefix}z"], batch[f"{prefix}e"])

    @property
    def features(self) -> Tensor:
        """What actor, critic and reward heads read: (..., deter + dim_z)."""
        return torch.cat([self.h, self.z.to(self.h.dtype)], -1)

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """The same function of each part."""
        return State(function(self.h), function(self.z), function(self.e))


@dataclass
class Observed:
    """A filtered sequence, all (B, T, ...), and the actions and beginnings behind it: see `WorldModel.observe`."""

    state: State
    s: Tensor
    posterior: Tensor
    prior: Tensor
    action: Tensor
    is_first: Tensor

    def detached(self) -> Observed:
        """Without gradient, but for the semantics e."""
        state = State(self.state.h.detach(), self.state.z.detach(), self.state.e)
        parts = (self.s.detach(), self.posterior.detach(), self.prior.detach())
        return Observed(state, *parts, self.action, self.is_first)

    def stretches(self, horizon: int, past: int = 0, stride: int = 0) -> tuple[State, Tensor, Tensor]:
        """Every sequence from frame `past` on as n stretches of H + 1 frames, where H is `horizon` or all there are but
        the first; one begins every `stride` frames, by default where the last one ended.

        Returns:
            states of their first frames (B·n, ...), positions (n, H) of the others, and actions (B·n, H, A) to these.
        """
        length = self.action.shape[1] - past
        horizon = min(horizon, length - 1)
        starts = torch.arange(past, past + length - horizon, stride or horizon + 1, device=self.action.device)
        steps = starts[:, None] + torch.arange(1, horizon + 1, device=self.action.device)  # (n, H)
        return self.state.map(lambda x: x[:, starts].flatten(0, 1)), steps, self.action[:, steps].flatten(0, 1)


@dataclass
class TaskContext:
    """Everything that depends on the prompt alone: τ (B, dim_tau), gates (B, L, ·), f_ψ(τ) (B, dim_e).

    Groundings without TAMF have L = 0, and τ is what their policy is told of the prompt. `distinct` are the prompts
    that the rows were taken from and `index` (B,) which each is of, where that is known. `references` keeps what the
    prompts look like to the model, by space and horizon (core/reward.py).
    """

    tau: Tensor
    gates: Tensor
    semantics: Tensor
    distinct: TaskContext | None = None
    index: Tensor | None = None
    references: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def expand(self, batch: int) -> TaskContext:
        """Repeat a single prompt's context over a batch."""
        tau, gates, semantics = (t.expand(batch, *t.shape[1:]) for t in (self.tau, self.gates, self.semantics))
        return TaskContext(tau, gates, semantics)

    def rows(self, index: Tensor) -> TaskContext:
        """The context of prompt index[i] for each row i."""
        return TaskContext(self.tau[index], self.gates[index], self.semantics[index], self, index)

    def repeat_interleave(self, times: int) -> TaskContext:
        """Each row `times` times, for several rollouts from one sequence."""
        tau, gates, semantics = (t.repeat_interleave(times, 0) for t in (self.tau, self.gates, self.semantics))
        return TaskContext(tau, gates, semantics)


@dataclass
class Labels:
    """What is known of each dataset part's task: text (P, dim_e), known (P,) bool, threshold (P,).

    A replay spans random to expert behaviour, so a segment counts as a demonstration of its label
    only when the backbone finds it, as a whole, at least `threshold` similar to the prompt.
    """

    text: Tensor
    known: Tensor
    threshold: Tensor


class Noise:
    """Noise for the *global* batch, of which this process takes its rows: the number of processes changes nothing."""

    def __init__(self, device: torch.device | str, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world = device, rank, world

    def uniform(self, *shape: int) -> Tensor:
        """(B, ...) numbers in [0, 1); B is this process's share."""
        return self._rows(torch.rand, *shape)

    def normal(self, *shape: int) -> Tensor:
        return self._rows(torch.randn, *shape)

    def _rows(self, draw: Callable[..., Tensor], batch: int, *rest: int) -> Tensor:
        return draw(batch * self.world, *rest, device=self.device)[self.rank * batch : (self.rank + 1) * batch]


def draw_state(log_probs: Tensor, noise: Noise | None) -> Tensor:
    """A one-hot sample (B, ..., C·K) of log-probabilities (B, ..., C, K), or their mode without noise."""
    return sample_one_hot(log_probs, noise.uniform(*log_probs.shape[:-1]) if noise else None)


class WorldModel(nn.Module):
    """RSSM and decoder with what a grounding puts into z; subclasses build the parts named here.

    `dim_z` and `dim_tau` are the widths of z and of τ. `reads_semantics`: whether z holds e, so that the
    backbone must look on while a policy acts. `spaces`: the ways to take the reward that a report compares.
    """

    reads_semantics: ClassVar[bool] = True
    spaces: ClassVar[tuple[str, ...]] = ("reward",)

    config: ModelConfig
    dim_embedding: int
    dim_action: int
    dim_z: int
    dim_tau: int
    adapter: nn.Module  # of the backbone's video embeddings
    rssm: RSSM
    decoder: ImageDecoder

    @property
    def dim_policy(self) -> int:
        """Width of what actor and critic read: [h, z, τ]."""
        return self.config.deter + self.dim_z + self.dim_tau

    # ------------------------------------------------------------------ what a grounding decides

    def task(self, embedding: Tensor) -> TaskContext:
        """The context of prompts from their text (or pseudo-text) embeddings (B, dim_e)."""
        raise NotImplementedError

    def fuse(self, e: Tensor, s: Tensor, gates: Tensor) -> Tensor:
        """z (..., dim_z) from e (..., dim_e), s (..., C·K) and the prompt's gates (..., L, ·)."""
        raise NotImplementedError

    def imagined_semantics(self, state: State, h: Tensor, s: Tensor) -> Tensor:
        """e (N, dim_e) of the imagined step that follows `state`."""
        raise NotImplementedError

    def predict_semantics(self, h: Tensor, s: Tensor) -> Tensor:
        """e (..., dim_e) of a state no camera saw, from the dynamics alone."""
        raise NotImplementedError

    def pretraining_loss(
        self, batch: Mapping[str, Tensor], labels: Labels, config: ObjectiveConfig, noise: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its detached terms on a batch of the sampler.

        Args:
            batch: image (B, T, 3, 64, 64) uint8, action (B, T, A), is_first (B, T), embedding (B, T, dim_e), task (B,).
        """
        raise NotImplementedError

    def conclude(self, image: Tensor, embedding: Tensor, semantics: Tensor) -> None:
        """What is fixed when training ends, from frames (N, 3, 64, 64) of the data, the stored embeddings (N, dim_e) of
        their windows and those that e_v is made of, the same unless the backbone was tuned; most keep nothing."""

    def reward(self, task: TaskContext, state: State, action: Tensor, space: str) -> Tensor:
        """Reward (N, H) for arriving at states 1..H.

        Args:
            task: context of N prompts. state: (N, H+1, ...). action: (N, H, A). space: one of `spaces`.
        """
        raise NotImplementedError

    def text_rollout(self, actions: Tensor, task: TaskContext, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """What the prompt looks like to the model: z̃ (N, H+1, dim_z) and log-probabilities (N, H+1, C, K).

        Raises BadInput for a grounding that imagines nothing from text.
        """
        raise BadInput(f"{type(self).__name__} imagines nothing from text; look at another --method")

    def dynamics(self) -> list[nn.Parameter]:
        """How the world goes on: imagination's recurrence and the prior; subclasses add the predictor of e."""
        blind = self.rssm.imagination
        recurrence = [*blind.parameters()] if blind else [self.rssm.h_first, *self.rssm.gru.parameters()]
        return [*recurrence, *self.rssm.prior_net.parameters()]

    # ------------------------------------------------------------------ filtering

    def observe(
        self, image: Tensor, action: Tensor, is_first: Tensor, e: Tensor, task: TaskContext, noise: Noise | None
    ) -> Observed:
        """Filter a sequence, parallel over time but for the recurrence (Eq. 1, 4).

        Args:
            image: (B, T, 3, 64, 64) uint8. action: (B, T, A). is_first: (B, T) bool. e: (B, T, dim_e), adapted.
            noise: source of the posterior samples; None takes the mode.
        """
        posterior = self.rssm.posterior(image)  # (B, T, C, K)
        s = draw_state(posterior, noise)  # (B, T, S)
        z = self.fuse(e, s, task.gates.unsqueeze(1))  # (B, T, dim_z)
        reset = is_first.clone()
        reset[:, 0] = True  # what came before the window is not known
        h = self.rssm.scan(z, action, reset, self.rssm.first(len(image)))  # (B, T, deter)
        return Observed(State(h, z, e), s, posterior, self.rssm.prior(h), action, is_first)

    def observe_step(
        self, image: Tensor, previous: State | None, action: Tensor, e: Tensor, task: TaskContext
    ) -> State:
        """Filter one frame, the path used when acting. image (B, 3, 64, 64), action (B, A) that led to it.

        `previous=None` starts an episode. Uses the posterior's mode.
        """
        s = draw_state(self.rssm.posterior(image), None)  # (B, S)
        z = self.fuse(e, s, task.gates)  # (B, dim_z)
        if previous is None:
            h, past, action = self.rssm.first(len(image)), torch.zeros_like(z), torch.zeros_like(action)
        else:
            h, past = previous.h, previous.z
        return State(self.rssm.step(h, past, action), z, e)

    # ------------------------------------------------------------------ imagination

    def first_state(self, task: TaskContext, noise: Noise | None) -> State:
        """An episode's first state as the model expects it before any frame: (B, ...) for B prompts."""
        count, device = len(task.tau), task.tau.device
        z, action = (torch.zeros(count, width, device=device) for width in (self.dim_z, self.dim_action))
        h = self.rssm.step(self.rssm.first(count), z, action)  # (B, deter)
        s = draw_state(self.rssm.prior(h), noise)
        e = self.predict_semantics(h, s)
        return State(h, self.fuse(e, s, task.gates), e)

    def imagine_step(
        self, state: State, action: Tensor, task: TaskContext, noise: Noise | None, seen: bool
    ) -> tuple[State, Tensor]:
        """z_{t+1} ~ p_θ(z_{t+1} | z_t, a_t) (Eq. 6): the next state and the prior's log-probabilities.

        A recurrence that filters takes every z for an observation: fed with what it imagines, it believes its own
        guesses whatever the actions do. So only the step from a z that was `seen` is the filter's; from there on a
        recurrence of imagination's own reads the actions alone (`model.reads_imagined: true` keeps the filter's).
        """
        h, blind = state.h, None if seen else self.rssm.imagination
        h = blind(action.to(h.dtype), h).to(h.dtype) if blind else self.rssm.step(h, state.z, action)  # (B, deter)
        prior = self.rssm.prior(h)  # (B, C, K)
        s = draw_state(prior, noise)  # (B, S)
        e = self.imagined_semantics(state, h, s)  # no camera looks into imagination
        return State(h, self.fuse(e, s, task.gates), e), prior

    def follow(self, start: State, actions: Tensor, task: TaskContext, noise: Noise) -> tuple[Tensor, Tensor]:
        """h (N, H, deter) and priors (N, H, C, K) of `imagine` under known actions (N, H, A).

        A recurrence that reads actions alone needs no z: everything else is parallel over time.
        """
        if self.rssm.imagination is None:
            states, _, priors = self.imagine(start, lambda _, t: actions[:, t], actions.shape[1], task, noise)
            return states.h[:, 1:], priors
        first = self.rssm.step(start.h, start.z, actions[:, 0])  # (N, deter)
        h = first.unsqueeze(1)  # (N, 1, deter)
        if actions.shape[1] > 1:
            reset = torch.zeros(actions[:, 1:].shape[:2], dtype=torch.bool, device=actions.device)
            h = torch.cat([h, self.rssm.imagination.scan(actions[:, 1:], first, reset, first)], 1)  # (N, H, deter)
        return h, self.rssm.prior(h)

    def imagine(
        self, start: State, act: Callable[[Tensor, int], Tensor], horizon: int, task: TaskContext, noise: Noise | None
    ) -> tuple[State, Tensor, Tensor]:
        """Roll the world model `horizon` steps from `start` (N, ...) under `act`: (features, step) → action (N, A).

        Returns:
            states (N, H+1, ...) including the start, actions (N, H, A), priors (N, H, C, K).
        """
        states, actions, priors = [start], [], []
        with unrolled(self):
            for step in range(horizon):
                action = act(states[-1].features, step)
                state, prior = self.imagine_step(states[-1], action, task, noise, seen=step == 0)
                states.append(state)
                actions.append(action)
                priors.append(prior)
        stacked = State(*(torch.stack([getattr(x, k) for x in states], 1).float() for k in ("h", "z", "e")))
        return stacked, torch.stack(actions, 1), torch.stack(priors, 1)
