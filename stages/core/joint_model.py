"""The joint model: MLLM adapter, task encoder, RSSM, TAMF and text imagination as one module.

Notation follows the paper: e video embedding, τ task embedding, h recurrent state, s stochastic
state (one-hot categorical sample), z fused latent. Shapes: B batch, T time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.nets import MLP, ImageDecoder, unimix_log_probs, unrolled
from stages.core.rssm import RSSM, Dynamics
from stages.core.settings import ModelConfig
from stages.core.tamf import TAMF
from stages.core.world_model import Noise, State, TaskContext, WorldModel, draw_state


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


class JointModel(WorldModel):
    """MLLM side and world model, coupled both ways (Section 3).

    `dim_embedding` is the width of the backbone's embeddings, of video and text; `adapter` is whether e_v passes the
    adapter (`mllm.train: adapter`), or is the backbone's own output.
    """

    def __init__(self, config: ModelConfig, dim_embedding: int, dim_action: int, adapter: bool = True) -> None:
        super().__init__()
        self.config, self.dim_embedding, self.dim_action = config, dim_embedding, dim_action
        self.dim_z, self.dim_tau = config.dim_z, config.dim_task
        c = config
        self.adapter = Adapter(dim_embedding) if adapter else nn.Identity()  # e_v = f_mllm(x), trainable part
        self.task_encoder = MLP(dim_embedding, c.dim_task, c.units, 1)  # f_task
        self.rssm = RSSM(c, c.dim_z, dim_action)
        self.fusion = TAMF(c, dim_embedding)
        self.decoder = ImageDecoder(c.dim_z, c.depth)  # p(x | z), Eq. 12
        self.semantic_decoder = MLP(c.dim_z, dim_embedding, c.units, 1)  # f_dec, Eq. 13
        self.semantic_predictor = MLP(c.deter + c.dim_s, dim_embedding, c.units, 1)  # f_sem(h, s)
        self.aligner = MLP(c.dim_task, dim_embedding, c.units, 1)  # f_ψ, Eq. 13
        self.semantic_origin: Tensor
        self.decoded_origin: Tensor
        self.register_buffer("semantic_origin", torch.zeros(dim_embedding))  # see `conclude`
        self.register_buffer("decoded_origin", torch.zeros(self.decoder.stem.out_features))
        self.text_map = MLP(c.dim_task, c.deter + c.dim_s, c.units, 1)  # f_map, Eq. 7
        self.text_dynamics = Dynamics(c, c.dim_z, dim_action)  # p̃_ψ, Eq. 8

    # ------------------------------------------------------------------ task

    def task(self, embedding: Tensor) -> TaskContext:
        """τ = f_task(y) from a text (or pseudo-text) embedding (B, dim_e), with its gates and f_ψ(τ)."""
        tau = self.task_encoder(embedding).float()
        return TaskContext(tau, self.fusion.gates(tau).float(), self.text_semantics(tau))

    def text_semantics(self, tau: Tensor) -> Tensor:
        """f_ψ(τ) (Eq. 13), unit norm: (..., dim_e)."""
        return F.normalize(self.aligner(tau).float(), dim=-1)

    def conclude(self, image: Tensor, embedding: Tensor, semantics: Tensor) -> None:
        """Keep the means of what rewards compare: what all frames have in common tells no task from another."""
        e = self.adapter(semantics)  # (N, dim_e)
        self.semantic_origin.copy_(e.mean(0))
        s = torch.cat([draw_state(self.rssm.posterior(some), None) for some in image.split(1024)])  # (N, S)
        self.decoded_origin.copy_(self.decoder.stem(self.fuse(e, s, self.task(embedding).gates)).mean(0))

    # ------------------------------------------------------------------ what fills z

    def fuse(self, e: Tensor, s: Tensor, gates: Tensor) -> Tensor:
        """z = TAMF(e, s, τ) (Eq. 4)."""
        return self.fusion(e, s, gates)

    def imagined_semantics(self, state: State, h: Tensor, s: Tensor) -> Tensor:
        """Predicted from the dynamics (`predict`), or the start's (`hold`)."""
        return state.e if self.config.imagined_semantics == "hold" else self.predict_semantics(h, s)

    def predict_semantics(self, h: Tensor, s: Tensor) -> Tensor:
        """ê_v = f_sem(h, s), unit norm: (..., dim_e)."""
        return F.normalize(self.semantic_predictor(torch.cat([h, s.to(h.dtype)], -1)).float(), dim=-1)

    def dynamics(self) -> list[nn.Parameter]:
        return [*super().dynamics(), *self.semantic_predictor.parameters()]

    def language(self) -> nn.ModuleDict:
        """What imagines from text, given τ: f_ψ, f_map and p̃_ψ."""
        return nn.ModuleDict({"aligner": self.aligner, "map": self.text_map, "dynamics": self.text_dynamics})

    # ------------------------------------------------------------------ text imagination

    def text_start(self, task: TaskContext) -> tuple[Tensor, Tensor]:
        """f_map(τ) (Eq. 7): first recurrent state (B, deter) and log-probabilities of s^τ (B, C, K)."""
        h, logits = self.text_map(task.tau).float().split([self.config.deter, self.config.dim_s], -1)
        return torch.tanh(h), unimix_log_probs(logits.unflatten(-1, self.rssm.shape), self.config.unimix)

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
        # A reset step does not advance h^τ: f_map(τ) is the state at the first frame itself, and the next one's past.
        after = torch.cat([torch.zeros_like(reset[:, :1]), reset[:, :-1]], 1)
        h = self.text_dynamics.gru.scan(x, h_first, after, h_first)
        h = torch.where(reset.unsqueeze(-1), h_first.unsqueeze(1), h)  # (B, T, deter)
        priors = self.text_dynamics.prior(h)
        return torch.where(reset[..., None, None], start.unsqueeze(1), priors), z

    def text_rollout(self, actions: Tensor, task: TaskContext, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Free-running text imagination (Eq. 8) from f_map(τ) (Eq. 7).

        Args:
            actions: (N, H, A) executed actions. noise: None takes the mode at each step.
        Returns:
            z̃^τ (N, H+1, dim_z) and log-probabilities (N, H+1, C, K).
        """
        h, log_probs = self.text_start(task)
        latents, all_probs = list[Tensor](), []
        actions, semantic = self.text_action(actions), self.fusion.fuse_semantic(task.semantics)
        with unrolled(self.text_dynamics, self.fusion):
            for step in range(actions.shape[1] + 1):
                if step:
                    h = self.text_dynamics.step(h, latents[-1], actions[:, step - 1])
                    log_probs = self.text_dynamics.prior(h)
                s = draw_state(log_probs, noise)
                latents.append(self.fusion.blend(semantic, s, task.gates))
                all_probs.append(log_probs)
        return torch.stack(latents, 1).float(), torch.stack(all_probs, 1)
