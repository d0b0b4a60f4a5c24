"""The joint model: MLLM adapter, task encoder, RSSM, TAMF and text imagination as one module.

Notation follows the paper: e video embedding, τ task embedding, h recurrent state, s stochastic
state (one-hot categorical sample), z fused latent. Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.artifacts import Artifact, corrupted
from stages.core.backbones.tuning import mllm_of
from stages.core.config import Section
from stages.core.errors import BadInput
from stages.core.fusion import TAMF
from stages.core.nets import MLP, ImageDecoder, sample_one_hot, unimix_log_probs
from stages.core.rssm import RSSM, Dynamics


class ModelConfig(Section):
    """Sizes and variants of the joint model; defaults and comments in presets/paper.yaml."""

    depth: int
    deter: int
    classes: int
    categories: int
    dim_z: int
    dim_task: int
    units: int
    fusion: Literal["tamf", "sum"]
    fusion_layers: int
    expert_hidden: int
    gate: Literal["scalar", "channel"]
    layer_scale: float
    unimix: float
    imagined_semantics: Literal["predict", "hold"]
    text_actions: Literal["policy", "none"]


@dataclass
class State:
    """Where a rollout stands: h (..., deter), z (..., dim_z) and the semantics e (..., dim_e) inside z."""

    h: Tensor
    z: Tensor
    e: Tensor

    @property
    def features(self) -> Tensor:
        """What actor, critic and reward heads read: (..., deter + dim_z)."""
        return torch.cat([self.h, self.z.to(self.h.dtype)], -1)


@dataclass
class Observed:
    """A filtered sequence, all (B, T, ...): see `JointModel.observe`."""

    state: State
    s: Tensor
    posterior: Tensor
    prior: Tensor


@dataclass
class TaskContext:
    """Everything that depends on the prompt alone: τ (B, dim_task), gates (B, L, ·), f_ψ(τ) (B, dim_e)."""

    tau: Tensor
    gates: Tensor
    semantics: Tensor

    def expand(self, batch: int) -> TaskContext:
        """Repeat a single prompt's context over a batch."""
        return TaskContext(*(t.expand(batch, *t.shape[1:]) for t in (self.tau, self.gates, self.semantics)))

    def rows(self, index: Tensor) -> TaskContext:
        """The context of prompt index[i] for each row i."""
        return TaskContext(self.tau[index], self.gates[index], self.semantics[index])

    def repeat_interleave(self, times: int) -> TaskContext:
        """Each row `times` times, for several rollouts from one sequence."""
        return TaskContext(*(t.repeat_interleave(times, 0) for t in (self.tau, self.gates, self.semantics)))


class Noise:
    """Uniform noise for the *global* batch of which this process takes its rows.

    So that results do not depend on the number of processes: all draw the same numbers.
    """

    def __init__(self, device: torch.device | str, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world = device, rank, world

    def uniform(self, *shape: int) -> Tensor:
        """(B, ...) numbers in [0, 1); B is this process's share."""
        batch = shape[0]
        drawn = torch.rand(batch * self.world, *shape[1:], device=self.device)
        return drawn[self.rank * batch : (self.rank + 1) * batch]

    def normal(self, *shape: int) -> Tensor:
        batch = shape[0]
        drawn = torch.randn(batch * self.world, *shape[1:], device=self.device)
        return drawn[self.rank * batch : (self.rank + 1) * batch]


class Adapter(nn.Module):
    """Trainable residual adapter on the frozen backbone's video embedding: the backward path's way into the MLLM.

    e = normalise(e₀ + γ·MLP(e₀)) with LayerScale γ = 0 at the start, so training begins at the backbone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = MLP(dim, dim, dim, 1)
        self.scale = nn.Parameter(torch.zeros(dim))

    def forward(self, e: Tensor) -> Tensor:
        return F.normalize(e + self.scale * self.net(e).float(), dim=-1)


class JointModel(nn.Module):
    """MLLM side and world model, coupled both ways (Section 3).

    Args:
        config: sizes.
        dim_embedding: width of the backbone's embeddings (video and text share it).
        dim_action: width of the action.
        adapter: whether e_v passes the adapter (`mllm.train: adapter`), or is the backbone's own output.
    """

    def __init__(self, config: ModelConfig, dim_embedding: int, dim_action: int, adapter: bool = True) -> None:
        super().__init__()
        self.config, self.dim_embedding, self.dim_action = config, dim_embedding, dim_action
        c = config
        dynamics = {
            "dim_z": c.dim_z,
            "dim_action": dim_action,
            "deter": c.deter,
            "classes": c.classes,
            "categories": c.categories,
            "units": c.units,
            "unimix": c.unimix,
        }
        dim_s = c.classes * c.categories
        self.adapter = Adapter(dim_embedding) if adapter else nn.Identity()  # e_v = f_mllm(x), trainable part
        self.task_encoder = MLP(dim_embedding, c.dim_task, c.units, 1)  # f_task
        self.rssm = RSSM(**dynamics, depth=c.depth)  # type: ignore[arg-type]
        self.fusion = TAMF(
            dim_semantic=dim_embedding,
            dim_state=dim_s,
            classes=c.classes,
            dim_task=c.dim_task,
            dim=c.dim_z,
            layers=c.fusion_layers,
            hidden=c.expert_hidden,
            gate=c.gate,
            layer_scale=c.layer_scale,
            enabled=c.fusion == "tamf",
        )
        self.decoder = ImageDecoder(c.dim_z, c.depth)  # p(x | z), Eq. 12
        self.semantic_decoder = MLP(c.dim_z, dim_embedding, c.units, 1)  # f_dec, Eq. 13
        self.semantic_predictor = MLP(c.deter + dim_s, dim_embedding, c.units, 1)  # f_sem(h, s)
        self.aligner = MLP(c.dim_task, dim_embedding, c.units, 1)  # f_ψ, Eq. 13
        self.text_map = MLP(c.dim_task, c.deter + dim_s, c.units, 1)  # f_map, Eq. 7
        self.text_dynamics = Dynamics(**dynamics)  # type: ignore[arg-type] # p̃_ψ, Eq. 8

    # ------------------------------------------------------------------ task

    def task(self, embedding: Tensor) -> TaskContext:
        """τ = f_task(y) from a text (or pseudo-text) embedding (B, dim_e), with its gates and f_ψ(τ)."""
        tau = self.task_encoder(embedding).float()
        semantics = F.normalize(self.aligner(tau).float(), dim=-1)
        return TaskContext(tau, self.fusion.gates(tau).float(), semantics)

    # ------------------------------------------------------------------ filtering

    def observe(
        self, image: Tensor, action: Tensor, is_first: Tensor, e: Tensor, task: TaskContext, noise: Noise | None
    ) -> Observed:
        """Filter a sequence, parallel over time but for the recurrence (Eq. 1, 4).

        Args:
            image: (B, T, 3, 64, 64) uint8. action: (B, T, A). is_first: (B, T) bool.
            e: (B, T, dim_e) adapted video embeddings.
            noise: source of the posterior samples; None takes the mode.
        """
        posterior = self.rssm.posterior(image)  # (B, T, C, K)
        s = sample_one_hot(posterior, noise.uniform(*posterior.shape) if noise else None)  # (B, T, S)
        z = self.fusion(e, s, task.gates.unsqueeze(1))  # (B, T, dim_z)
        reset = is_first.clone()
        reset[:, 0] = True  # what came before the window is not known
        h = self.rssm.scan(z, action, reset, self.rssm.first(len(image)))  # (B, T, deter)
        return Observed(State(h, z, e), s, posterior, self.rssm.prior(h))

    def observe_step(
        self, image: Tensor, previous: State | None, action: Tensor, e: Tensor, task: TaskContext
    ) -> State:
        """Filter one frame, the path used when acting. image (B, 3, 64, 64), action (B, A) that led to it.

        `previous=None` starts an episode. Uses the posterior's mode.
        """
        s = sample_one_hot(self.rssm.posterior(image), None)  # (B, S)
        z = self.fusion(e, s, task.gates)  # (B, dim_z)
        if previous is None:
            h, past, action = self.rssm.first(len(image)), torch.zeros_like(z), torch.zeros_like(action)
        else:
            h, past = previous.h, previous.z
        return State(self.rssm.step(h, past, action), z, e)

    # ------------------------------------------------------------------ imagination

    def first_state(self, task: TaskContext, noise: Noise | None) -> State:
        """An episode's first state as the model expects it before any frame: (B, ...) for B prompts."""
        count, device = len(task.tau), task.tau.device
        z, action = (
            torch.zeros(count, self.config.dim_z, device=device),
            torch.zeros(count, self.dim_action, device=device),
        )
        h = self.rssm.step(self.rssm.first(count), z, action)  # (B, deter)
        s = sample_one_hot(self.rssm.prior(h), noise.uniform(count, *self.rssm.shape) if noise else None)
        e = self.predict_semantics(h, s)
        return State(h, self.fusion(e, s, task.gates), e)

    def imagine_step(
        self, state: State, action: Tensor, task: TaskContext, uniform: Tensor | None
    ) -> tuple[State, Tensor]:
        """z_{t+1} ~ p_θ(z_{t+1} | z_t, a_t) (Eq. 6): the next state and the prior's log-probabilities.

        No camera looks into imagination: the semantics are predicted from the dynamics (`predict`) or
        held at the start's (`hold`).
        """
        h = self.rssm.step(state.h, state.z, action)  # (B, deter)
        prior = self.rssm.prior(h)  # (B, C, K)
        s = sample_one_hot(prior, uniform)  # (B, S)
        e = state.e if self.config.imagined_semantics == "hold" else self.predict_semantics(h, s)
        return State(h, self.fusion(e, s, task.gates), e), prior

    def predict_semantics(self, h: Tensor, s: Tensor) -> Tensor:
        """ê_v = f_sem(h, s), unit norm: (..., dim_e)."""
        return F.normalize(self.semantic_predictor(torch.cat([h, s.to(h.dtype)], -1)).float(), dim=-1)

    def imagine(
        self,
        start: State,
        act: Callable[[Tensor, int], Tensor],
        horizon: int,
        task: TaskContext,
        noise: Noise | None,
    ) -> tuple[State, Tensor, Tensor]:
        """Roll the world model `horizon` steps from `start` (N, ...).

        Args:
            act: (features, step) → action (N, A).
        Returns:
            states (N, H+1, ...) including the start, actions (N, H, A), priors (N, H, C, K).
        """
        states, actions, priors = [start], [], []
        shape = (len(start.h), *self.rssm.shape)
        for step in range(horizon):
            action = act(states[-1].features, step)
            state, prior = self.imagine_step(states[-1], action, task, noise.uniform(*shape) if noise else None)
            states.append(state)
            actions.append(action)
            priors.append(prior)
        stacked = State(*(torch.stack([getattr(x, k).float() for x in states], 1) for k in ("h", "z", "e")))
        return stacked, torch.stack(actions, 1), torch.stack(priors, 1)

    # ------------------------------------------------------------------ text imagination

    def text_start(self, task: TaskContext) -> tuple[Tensor, Tensor]:
        """f_map(τ) (Eq. 7): first recurrent state (B, deter) and log-probabilities of s^τ (B, C, K)."""
        h, logits = self.text_map(task.tau).float().split([self.config.deter, self._dim_s], -1)
        return torch.tanh(h), unimix_log_probs(logits.unflatten(-1, self.rssm.shape), self.config.unimix)

    @property
    def _dim_s(self) -> int:
        return self.config.classes * self.config.categories

    def text_action(self, action: Tensor) -> Tensor:
        """The executed action as the text imagination sees it: itself (`policy`) or nothing (`none`)."""
        return action if self.config.text_actions == "policy" else torch.zeros_like(action)

    def text_forced(self, s: Tensor, action: Tensor, is_first: Tensor, task: TaskContext) -> tuple[Tensor, Tensor]:
        """Text imagination along data, teacher-forced with posterior samples: parallel over time but for h.

        Args:
            s: (B, T, S) posterior samples (no gradient is taken through them). action: (B, T, A).
        Returns:
            log-probabilities p̃ (B, T, C, K), at t = 0 and at episode starts f_map's own; and z̃ (B, T, dim_z).
        """
        h_first, start = self.text_start(task)
        z = self.fusion(task.semantics.unsqueeze(1), s.detach(), task.gates.unsqueeze(1))  # (B, T, dim_z)
        reset = is_first.clone()
        reset[:, 0] = True
        previous = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        x = torch.cat([previous, self.text_action(action).to(z.dtype)], -1)
        # A reset step does not advance h^τ: f_map(τ) is the state at the first frame itself.
        h = _scan_holding(self.text_dynamics, x, h_first, reset)
        priors = self.text_dynamics.prior(h)
        return torch.where(reset[..., None, None], start.unsqueeze(1), priors), z

    def text_rollout(self, actions: Tensor, task: TaskContext, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Free-running text imagination (Eq. 8) from f_map(τ) (Eq. 7).

        Args:
            actions: (N, H, A) executed actions.
            noise: None takes the mode at each step.
        Returns:
            z̃^τ (N, H+1, dim_z) and log-probabilities (N, H+1, C, K).
        """
        h, log_probs = self.text_start(task)
        latents: list[Tensor] = []
        all_probs = []
        actions = self.text_action(actions)
        for step in range(actions.shape[1] + 1):
            if step:
                h = self.text_dynamics.step(h, latents[-1], actions[:, step - 1])
                log_probs = self.text_dynamics.prior(h)
            s = sample_one_hot(log_probs, noise.uniform(*log_probs.shape) if noise else None)
            latents.append(self.fusion(task.semantics, s, task.gates))
            all_probs.append(log_probs)
        return torch.stack([z.float() for z in latents], 1), torch.stack(all_probs, 1)


def _scan_holding(dynamics: Dynamics, x: Tensor, h_first: Tensor, reset: Tensor) -> Tensor:
    """Recurrence in which a reset step *is* `h_first` instead of a step from it: (B, T, deter)."""
    projected = dynamics.gru.inp(x)  # (B, T, 3D)
    keep = (~reset).unsqueeze(-1).to(h_first.dtype)
    h, states = h_first, []
    for t in range(x.shape[1]):
        h = dynamics.gru.cell(projected[:, t], h) * keep[:, t] + h_first * (1 - keep[:, t])
        h = h.to(h_first.dtype)
        states.append(h)
    return torch.stack(states, 1)


def load_model(artifact: Artifact, device: str | torch.device = "cpu") -> JointModel:
    """Rebuild the joint model that a pretrain, behave or transfer artifact holds, frozen, on `device`.

    Raises:
        BadInput: the tensors do not fit the configuration that the artifact records.
    """
    tensors, extra = artifact.tensors("model"), artifact.meta["extra"]
    try:
        config = ModelConfig.model_validate(artifact.meta["config"]["model"])
        sizes = [
            v for v in (*config.model_dump().values(), extra["dim_embedding"], extra["dim_action"]) if type(v) is int
        ]
        if max(sizes) > sum(t.numel() for t in tensors.values()) or config.fusion_layers > len(tensors):
            raise ValueError("a size is larger than all its weights")  # building it could take all memory
        adapter = mllm_of(artifact).train == "adapter"
        model = JointModel(config, extra["dim_embedding"], extra["dim_action"], adapter=adapter)
    except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise corrupted(artifact.path / "artifact.json", error) from None
    load_weights(model, tensors, artifact.path)
    return model.to(device).requires_grad_(False).eval()


def load_weights(module: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Strict load_state_dict. Raises BadInput naming the first key or shape that does not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise BadInput(
            f"the weights in {where} do not fit its configuration ({reason}); make it again with --fresh"
        ) from None
