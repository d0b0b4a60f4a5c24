"""The recurrent state-space model: image-only posterior, recurrent transition, prior (Eq. 1, 6, 12).

Everything but the recurrence is parallel over time: the posterior reads the image alone, so s_t and
z_t are known for the whole sequence before the recurrence starts. The text imagination (Eq. 7, 8)
is a second instance of the same transition and prior, without an encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.core.nets import MLP, ImageEncoder, NormGRU, unimix_log_probs
from stages.core.settings import ModelConfig


class Dynamics(nn.Module):
    """h' = NormGRU(h, [z, a]) and the prior p(s | h): C categorical variables of K classes each.

    Args:
        config: deter, classes, categories, units and unimix of the model.
        dim_z, dim_action: widths of what drives the recurrence.
    """

    def __init__(self, config: ModelConfig, dim_z: int, dim_action: int) -> None:
        super().__init__()
        self.shape = (config.classes, config.categories)
        self.unimix = config.unimix
        self.gru = NormGRU(dim_z + dim_action, config.deter)
        self.prior_net = MLP(config.deter, config.dim_s, config.units, 1)

    def prior(self, h: Tensor) -> Tensor:
        """h (..., deter) → log-probabilities (..., C, K)."""
        return unimix_log_probs(self.prior_net(h).unflatten(-1, self.shape), self.unimix)

    def step(self, h: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """One transition: h (..., deter), z (..., dim_z), action (..., A) → next h."""
        return self.gru(torch.cat([z, action.to(z.dtype)], -1), h).to(h.dtype)

    def scan(self, z: Tensor, action: Tensor, reset: Tensor, h_reset: Tensor) -> Tensor:
        """All transitions of a sequence, teacher-forced with the known z.

        Args:
            z: (B, T, dim_z) fused latents; step t reads z[:, t-1]. action: (B, T, A); action[:, t] led to frame t.
            reset: (B, T) bool; at a reset the past (h, z, action) is replaced by (h_reset, 0, 0). h_reset: (B, deter).
        Returns:
            h (B, T, deter).
        """
        keep = (~reset).unsqueeze(-1).to(z.dtype)  # (B, T, 1)
        previous = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1) * keep  # (B, T, dim_z)
        x = torch.cat([previous, action.to(z.dtype) * keep], -1)
        return self.gru.scan(x, h_reset, reset, h_reset)


class RSSM(Dynamics):
    """The world model's dynamics, with the posterior q(s_t | x_t), a first state, and a recurrence of imagination.

    `imagination` reads actions alone, and is None where imagination feeds the filter's with what it imagines.
    """

    def __init__(self, config: ModelConfig, dim_z: int, dim_action: int) -> None:
        super().__init__(config, dim_z, dim_action)
        self.imagination = None if config.reads_imagined else NormGRU(dim_action, config.deter)
        entrance = self.gru.inp[0]
        assert isinstance(entrance, nn.Linear)
        with torch.no_grad():  # s has `classes` ones: an action of fewer numbers would enter at a smaller scale
            entrance.weight[:, dim_z:] *= (config.classes / dim_action) ** 0.5
        self.encoder = ImageEncoder(config.depth)
        self.posterior_net = MLP(self.encoder.out_features, config.dim_s, config.units, 1)
        self.h_first = nn.Parameter(torch.zeros(config.deter))

    def posterior(self, image: Tensor) -> Tensor:
        """uint8 image (..., 3, 64, 64) → log-probabilities of s (..., C, K)."""
        lead = image.shape[:-3]
        logits = self.posterior_net(self.encoder(image.flatten(0, -4)))
        return unimix_log_probs(logits.unflatten(0, lead).unflatten(-1, self.shape), self.unimix)

    def first(self, batch: int) -> Tensor:
        """h before the first frame of an episode: (batch, deter)."""
        return torch.tanh(self.h_first).expand(batch, -1)
