"""How a prompt becomes reward: BiTAgent's text-conditioned imagination (Eq. 7, 8, 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.joint_model import JointModel
from stages.core.settings import Measure
from stages.core.world_model import TaskContext


def text_reward(model: JointModel, task: TaskContext, z: Tensor, action: Tensor, measure: Measure) -> Tensor:
    """r_t = cos(z_t, z̃^τ_t) (Eq. 10) along a real or imagined sequence.

    `space: z` is the equation as written. `space: semantic` reads both latents through f_dec (Eq. 13)
    first: in z the one-hot state of two gaits out of phase is nearly orthogonal and hides what they
    have in common. `space: relative` also takes off the mean of e, half of random behaviour and half of all
    data: training draws every video and every prompt toward one direction, beside which little is left of what
    tells them apart.

    The reference starts at f_map(τ) and follows the executed actions (`text_actions: policy`) or none;
    it takes the mode at each step. With `align: best` each sequence is compared with the reference at
    the offset in time that fits it best, for gaits out of phase.

    Args:
        task: context of N prompts.
        z: (N, H+1, dim_z). action: (N, H, A).
    Returns:
        (N, H): reward for arriving at states 1..H.
    """

    z = _pose(model, z[:, 1:], measure)  # (N, H, dim_z or dim_e)
    reference = _reference(model, task, action, measure)  # (N, H+1, ·)
    if measure.align == "none":
        return (z * reference[:, 1:]).sum(-1)
    similarity = z @ reference.transpose(1, 2)  # (N, H, H+1)
    return _best_offset(similarity)


def _pose(model: JointModel, latent: Tensor, measure: Measure) -> Tensor:
    """What a measure compares of latents (..., dim_z): (..., dim_z or dim_e), unit norm."""
    if measure.space != "z":
        latent = model.semantic_decoder(latent).float()
    return F.normalize(latent.float() - (model.semantic_origin if measure.space == "relative" else 0.0), dim=-1)


def _reference(model: JointModel, task: TaskContext, action: Tensor, measure: Measure) -> Tensor:
    """What the text imagination goes through (N, H+1, ·); where no action moves it, taken once for each prompt and
    kept, as nothing that is rewarded trains the model."""
    if model.config.text_actions == "policy" or task.distinct is None:
        return _pose(model, model.text_rollout(action, task, None)[0], measure)
    kept, key = task.distinct.references, (measure, action.shape[1])
    if key not in kept:
        kept[key] = _still_reference(model, task.distinct, *key)
    return kept[key][task.index]


@torch.no_grad()
def _still_reference(model: JointModel, prompts: TaskContext, measure: Measure, steps: int) -> Tensor:
    """The text imagination of K prompts without actions: (K, H+1, ·)."""
    still = prompts.tau.new_zeros(len(prompts.tau), steps, model.dim_action)
    return _pose(model, model.text_rollout(still, prompts, None)[0], measure)


def refresh_references(model: JointModel, prompts: TaskContext) -> None:
    """Take the references kept of K prompts anew, in place: a captured update reads them where they are."""
    for (measure, steps), kept in prompts.references.items():
        kept.copy_(_still_reference(model, prompts, measure, steps))


def _best_offset(similarity: Tensor) -> Tensor:
    """similarity (N, H, H+1) of sequence steps and reference steps → (N, H) at the best common shift.

    Shifts wrap within the reference, whose steps past the first pose are a stretch of a gait.
    """
    horizon = similarity.shape[1]
    steps = torch.arange(horizon, device=similarity.device)
    columns = (steps[:, None] + steps[None, :]) % horizon + 1  # (shift, t)
    shifted = similarity[:, steps[None, :], columns]  # (N, shift, t)
    best = shifted.mean(-1).argmax(-1)  # (N,)
    return shifted[torch.arange(len(best), device=best.device), best]
