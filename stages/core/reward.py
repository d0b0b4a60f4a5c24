"""How a prompt becomes reward: BiTAgent's text-conditioned imagination (Eq. 7, 8, 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.joint_model import JointModel
from stages.core.world_model import TaskContext


def text_reward(model: JointModel, task: TaskContext, z: Tensor, action: Tensor, space: str) -> Tensor:
    """r_t = cos(z_t, z̃^τ_t) (Eq. 10) along a real or imagined sequence.

    `space: z` is the equation as written: the one-hot states of two gaits out of phase are nearly orthogonal there and
    hide what they have in common. `relative` reads both latents through f_dec (Eq. 13), less the mean of e, half of
    random behaviour and half of all data: training draws every video and every prompt toward one direction, beside
    which little is left of what tells them apart. `decoded` reads what the image decoder first makes of both, less its
    mean: poses, which the text imagination alone knows. `both` is the mean of these two.

    The reference starts at f_map(τ), follows the executed actions (`text_actions: policy`) or none, and takes modes.

    Args:
        task: context of N prompts. z: (N, H+1, dim_z). action: (N, H, A).
    Returns:
        (N, H): reward for arriving at states 1..H.
    """
    z = _compared(model, z[:, 1:], space)  # (N, H, ·)
    reference = _reference(model, task, action, space)  # (N, H+1, ·)
    return (z * reference[:, 1:]).sum(-1)


def _compared(model: JointModel, latent: Tensor, space: str) -> Tensor:
    """What a space compares of latents (..., dim_z): (..., ·), unit norm."""
    if space == "both":
        return torch.cat([_compared(model, latent, half) for half in ("relative", "decoded")], -1) * 0.5**0.5
    if space == "decoded":
        return F.normalize(model.decoder.stem(latent).float() - model.decoded_origin, dim=-1)
    if space == "relative":
        latent = model.semantic_decoder(latent).float() - model.semantic_origin
    return F.normalize(latent.float(), dim=-1)


def _reference(model: JointModel, task: TaskContext, action: Tensor, space: str) -> Tensor:
    """What the text imagination goes through (N, H+1, ·); where no action moves it, taken once for each prompt and
    kept until `refresh_reference`."""
    if model.config.text_actions == "policy" or task.distinct is None:
        return _compared(model, model.text_rollout(action, task, None)[0], space)
    kept, key = task.distinct.references, (space, action.shape[1])
    if key not in kept:
        kept[key] = _still_reference(model, task.distinct, *key)
    return kept[key][task.index]


@torch.no_grad()
def _still_reference(model: JointModel, prompts: TaskContext, space: str, steps: int) -> Tensor:
    """The text imagination of K prompts without actions: (K, H+1, ·)."""
    still = prompts.tau.new_zeros(len(prompts.tau), steps, model.dim_action)
    return _compared(model, model.text_rollout(still, prompts, None)[0], space)


def refresh_reference(model: JointModel, prompts: TaskContext, space: str, steps: int) -> None:
    """Take what is kept of K prompts anew, in place: a captured update reads it where it is."""
    found = _still_reference(model, prompts, space, steps)
    prompts.references.setdefault((space, steps), found).copy_(found)
