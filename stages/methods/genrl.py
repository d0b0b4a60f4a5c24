"""GenRL (Mazzaglia et al. 2024): a connector imagines, from an embedding, the states its video would go through.

A text embedding is first denoised by the aligner, so that it lands where video embeddings live. The connector,
unrolled from it, gives target states; a policy is rewarded for states that decode alike, aligned in time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.core.nets import MLP, categorical_kl
from stages.core.rssm import Dynamics
from stages.core.settings import ModelConfig, ObjectiveConfig
from stages.core.world_model import Noise, Observed, State, TaskContext, draw_state
from stages.methods.plain import PlainWorldModel
from stages.runtime.config import Section
from stages.runtime.errors import BadInput


class GenRLConfig(Section):
    """Constants of GenRL; defaults and comments in presets/paper.yaml."""

    window: int
    kl_balance: float
    noise: float


class Aligner(nn.Module):
    """A small U-net of fully connected layers, two halvings of the width and back.

    Text or noisy embeddings (..., dim_e) → where video embeddings live, unit norm.
    """

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(dim, units), _block(units, units // 2)])
        self.middle = _block(units // 2, units // 4)
        self.up = nn.ModuleList([_block(units // 4 + units // 2, units // 2), _block(units // 2 + units, units)])
        self.out = nn.Linear(units, dim)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], -1))
        return F.normalize(self.out(x).float(), dim=-1)

    def loss(self, e: Tensor, amount: float, noise: Noise) -> Tensor:
        """1 - cosine of what is denoised from `perturb` and of the video embedding e (..., dim_e) itself."""
        noisy = perturb(e, noise.normal(*e.shape), amount)
        return 1 - (self(noisy) * e).sum(-1).mean()


def _block(inp: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inp, out), nn.LayerNorm(out), nn.SiLU())


def perturb(e: Tensor, normal: Tensor, amount: float) -> Tensor:
    """(1 - α) e + α n / |n|, renormalised: unit vectors (..., dim_e) with Gaussian noise `normal`."""
    return F.normalize((1 - amount) * e + amount * F.normalize(normal, dim=-1), dim=-1)


class GenRL(PlainWorldModel):
    """World model, connector and aligner.

    Args:
        window: frames behind one embedding; the connector reads one embedding for so many steps.
        kl_balance: weight of KL(connector ‖ sg(posterior)); the rest of the balance would move the posterior, which
            is detached.
        noise: α of the aligner's training noise, e ← (1 - α) e + α n / |n|.
    """

    def __init__(
        self, config: ModelConfig, dim_embedding: int, dim_action: int, window: int, kl_balance: float, noise: float
    ) -> None:
        super().__init__(config, dim_embedding, dim_action)
        self.window, self.kl_balance, self.noise = window, kl_balance, noise
        self.scale = dim_embedding**0.5  # components of a unit vector become of order one, as those of a state are
        # The embedding stands where the action does in the world model.
        self.connector = Dynamics(config, self.dim_z, dim_embedding)
        self.connector_start = MLP(dim_embedding, config.deter, config.units, 1)
        self.aligner = Aligner(dim_embedding, config.units)

    def task(self, embedding: Tensor) -> TaskContext:
        """`semantics` is the aligned embedding, which the connector reads; the policy is told the embedding itself."""
        given = super().task(embedding)
        return TaskContext(given.tau, given.gates, self.aligner(given.tau))

    # ------------------------------------------------------------------ pretraining

    def grounding_terms(self, seen: Observed, config: ObjectiveConfig, noise: Noise) -> dict[str, Tensor]:
        """KL from the connector to the posterior, and the aligner's denoising."""
        e = seen.state.e  # (B, T, dim_e)
        steps = e.shape[1] // self.window * self.window
        if not steps:
            raise BadInput(f"GenRL reads windows of {self.window} frames: raise pretrain.length from {e.shape[1]}")
        video = self.per_window(e[:, :steps])  # (B, T', dim_e)
        connected = self.connect(seen.s[:, :steps], video, noise)  # (B, T', C, K)
        return {
            "connector": self.kl_balance * categorical_kl(connected, seen.posterior[:, :steps]).mean(),
            "aligner": self.aligner.loss(e, self.noise, noise),
        }

    def per_window(self, e: Tensor) -> Tensor:
        """The embedding of each window's last frame, which saw the whole window, repeated over its frames."""
        return e[:, self.window - 1 :: self.window].repeat_interleave(self.window, 1)  # (B, T', dim_e)

    def connect(self, s: Tensor, video: Tensor, noise: Noise | None) -> Tensor:
        """The connector along a sequence, teacher-forced with the previous posterior sample.

        Args:
            s: (B, T, C·K) posterior samples. video: (B, T, dim_e) embeddings, one a window.
        Returns:
            log-probabilities (B, T, C, K) of the state at each step.
        """
        h, first = self.connector_first(video[:, 0], noise)
        previous = torch.cat([first[:, None], s[:, :-1]], 1)  # (B, T, C·K)
        never = torch.zeros(s.shape[:2], dtype=torch.bool, device=s.device)
        return self.connector.prior(self.connector.gru.scan(torch.cat([previous, self.scale * video], -1), h, never, h))

    def connector_first(self, video: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """The connector's state before the first frame: h (B, deter) from the embedding (B, dim_e), and s (B, C·K)
        sampled from the prior of h, or its mode without noise."""
        h = torch.tanh(self.connector_start(self.scale * video).float())
        return h, draw_state(self.connector.prior(h), noise)

    # ------------------------------------------------------------------ reward

    def text_rollout(self, actions: Tensor, task: TaskContext, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """The connector unrolled from the aligned embedding; without noise, by the mode at each step, the first
        included. Actions only count steps."""
        video = self.scale * task.semantics  # (N, dim_e)
        h, s = self.connector_first(task.semantics, noise)
        states, priors = [], []
        for _ in range(actions.shape[1] + 1):
            h = self.connector.step(h, s, video)
            prior = self.connector.prior(h)  # (N, C, K)
            s = draw_state(prior, noise)
            states.append(s)
            priors.append(prior)
        return torch.stack(states, 1), torch.stack(priors, 1)

    def reward(self, task: TaskContext, state: State, action: Tensor, space: str) -> Tensor:
        """Similarity to the target states in the decoder's first layer, aligned in time."""
        prompts, index = (task, slice(None)) if task.distinct is None else (task.distinct, task.index)
        steps = action[:, 1:].new_zeros(len(prompts.tau), *action[0, 1:].shape)  # as many as are judged
        target, _ = self.text_rollout(steps, prompts, None)  # (K, H, C·K), once for each prompt
        mine, wanted = (self.decoder.stem(x).float() for x in (state.z[:, 1:], target))
        return aligned_reward(clipped_cosine(mine, wanted[index]), self.window)


def clipped_cosine(a: Tensor, b: Tensor) -> Tensor:
    """a·b / max(|a|, |b|)², a cosine that also asks for equal norms: (N, H, D) and (N, G, D) → (N, H, G)."""
    norm = torch.maximum(a.norm(dim=-1).unsqueeze(2), b.norm(dim=-1).unsqueeze(1)).clamp(min=1e-8)
    return a @ b.transpose(1, 2) / norm.square()


def aligned_reward(similarity: Tensor, window: int) -> Tensor:
    """The target placed at the start that fits its first `window` steps best; before it, its first state counts.

    Args:
        similarity: (N, H, H) of each step of a sequence and each step of the target.
    Returns:
        (N, H).
    """
    horizon = similarity.shape[1]
    window = min(window, horizon)
    steps = torch.arange(horizon, device=similarity.device)
    starts = torch.arange(horizon - window + 1, device=similarity.device)
    inner = torch.arange(window, device=similarity.device)
    fit = similarity[:, starts[:, None] + inner, inner].mean(-1)  # (N, starts)
    best = fit.argmax(-1)  # (N,)
    column = (steps - best[:, None]).clamp(min=0)  # (N, H)
    return similarity.gather(2, column.unsqueeze(-1)).squeeze(-1)
