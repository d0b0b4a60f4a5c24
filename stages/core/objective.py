"""The joint objective: L_total = λ_WM L_WM + λ_MLLM L_MLLM + λ_JBO L_JBO (Eq. 9, 11-14)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.core.joint_model import JointModel
from stages.core.nets import categorical_kl
from stages.core.settings import DynamicsConfig, ObjectiveConfig
from stages.core.world_model import Labels, Noise, Observed, State, TaskContext, WorldModel, draw_state

DYNAMICS_PAST = 8  # frames of a sequence that h sees before rollouts of `dynamics_loss` begin


@dataclass
class Prompted:
    """The prompt each sequence is read under: embedding (B, dim_e); `shown` (B,) 1 where the segment shows it."""

    embedding: Tensor
    shown: Tensor


def segment_semantics(e: Tensor) -> Tensor:
    """What a segment of frames shows: the mean direction of its embeddings (B, T, dim_e) → (B, dim_e)."""
    return F.normalize(e.mean(1), dim=-1)


def choose_prompts(e: Tensor, part: Tensor, labels: Labels, config: ObjectiveConfig, noise: Noise) -> Prompted:
    """The label's text, or pseudo-text: the segment's own video embedding, noised (LAFITE) and renormalised.

    Args:
        e: (B, T, dim_e) backbone embeddings. part: (B,) index into `labels`.
    """
    segment = segment_semantics(e)  # (B, dim_e)
    direction = F.normalize(noise.normal(*segment.shape), dim=-1)
    amount = config.pseudo_text_noise * noise.uniform(len(e), 1)
    pseudo = F.normalize((1 - amount) * segment + amount * direction, dim=-1)
    text = labels.text[part]  # (B, dim_e)
    use_pseudo = (noise.uniform(len(e)) < config.pseudo_text) | ~labels.known[part]
    shown = use_pseudo | ((segment * text).sum(-1) >= labels.threshold[part])
    return Prompted(torch.where(use_pseudo.unsqueeze(-1), pseudo, text), shown.float())


def world_model_loss(model: WorldModel, seen: Observed, image: Tensor, config: ObjectiveConfig) -> dict[str, Tensor]:
    """L_WM (Eq. 12): KL(q(s_t) ‖ p(s_t)) with balancing and free nats, and reconstruction from z_t."""
    return kl_losses(seen, config) | {"image": image_error(model, seen.state.z, image, config.decoded)}


def image_error(model: WorldModel, z: Tensor, image: Tensor, decoded: int) -> Tensor:
    """Error of `decoded` frames of windows, drawn anew each time: z (B, T, dim_z), image (B, T, 3, 64, 64)."""
    if decoded < z.shape[1]:
        some = torch.rand(z.shape[1], device=z.device).argsort()[:decoded]
        z, image = z[:, some], image[:, some]
    return model.decoder.squared_error(z.flatten(0, 1), image.flatten(0, 1))


def kl_losses(seen: Observed, config: ObjectiveConfig) -> dict[str, Tensor]:
    """KL(q(s_t) ‖ p(s_t)) with balancing and free nats, `kl`, and plain, `kl_nats`; both without the first step of a
    window inside an episode, which has no past to be predicted from."""
    mask = torch.ones_like(seen.is_first, dtype=torch.float32)
    mask[:, 0] = seen.is_first[:, 0].float()
    dynamics = categorical_kl(seen.posterior.detach(), seen.prior)  # (B, T)
    representation = categorical_kl(seen.posterior, seen.prior.detach())
    clipped = [(kl.clamp(min=config.free_nats) * mask).mean() for kl in (dynamics, representation)]
    return {
        "kl": config.kl_dynamics * clipped[0] + config.kl_representation * clipped[1],
        "kl_nats": (dynamics * mask).mean().detach(),
    }


def mllm_loss(
    model: JointModel, seen: Observed, task: TaskContext, shown: Tensor, config: ObjectiveConfig
) -> dict[str, Tensor]:
    """L_MLLM (Eq. 13): ‖e - f_dec(z)‖² + ‖e - f_ψ(τ)‖², and the predictor of e used in imagination.

    With a trainable e both raw terms have the optimum e = const; so e is a fixed target of the first,
    and in the second each side moves toward the other's stop-gradient.
    """
    e = seen.state.e  # (B, T, dim_e)
    reconstruction = (e.detach() - model.semantic_decoder(seen.state.z).float()).square().sum(-1).mean()
    goal = task.semantics.unsqueeze(1)  # (B, 1, dim_e)
    toward_video = (e.detach() - goal).square().sum(-1).mean(1)  # (B,)
    toward_text = (e - goal.detach()).square().sum(-1).mean(1)
    predicted = model.predict_semantics(seen.state.h, seen.s)
    return {
        "semantic_reconstruction": reconstruction,
        "alignment": ((toward_video + config.align_video * toward_text) * shown).mean(),
        "semantic_prediction": (e.detach() - predicted).square().sum(-1).mean(),
    }


def text_imagination_loss(model: JointModel, seen: Observed, task: TaskContext, shown: Tensor) -> Tensor:
    """Eq. 9 on the data's actions: KL(world model ‖ text imagination); the world model is the fixed teacher."""
    text, _ = model.text_forced(seen.s, seen.action, seen.is_first, task)  # (B, T, C, K)
    first = seen.is_first.clone()
    first[:, 0] = True
    teacher = torch.where(first[..., None, None], seen.posterior, seen.prior).detach()
    return (categorical_kl(teacher, text).mean(1) * shown).mean()


def joint_behavior_loss(
    model: JointModel, seen: Observed, task: TaskContext, shown: Tensor, config: ObjectiveConfig, noise: Noise
) -> dict[str, Tensor]:
    """L_JBO (Eq. 14): discounted KL between a world-model rollout and a text rollout; gradients reach both.

    Every sequence is cut into stretches of horizon + 1 frames; each stretch's first frame is a start,
    its following actions drive both rollouts. Alone, the term is cheapest when every rollout drifts to
    one state the text can predict; so the same rollouts are held to the data: `rollout` is the KL from
    the posterior of the frame they predict, and the error of the semantics they predict. A stretch counts
    up to where an episode begins in it.
    """
    start, steps, actions = seen.stretches(config.horizon)  # (B·count, ...), (count, H), (B·count, H, A)
    count, horizon = steps.shape
    repeated = task.repeat_interleave(count)
    h, prior = model.follow(start, actions, repeated, noise)  # (B·count, H, ...)
    imagined = model.predict_semantics(h, draw_state(prior, noise))  # (B·count, H, dim_e)
    _, text = model.text_rollout(actions, repeated, noise)
    weight = discounted(horizon, config.discount, steps.device)
    weight = weight * (~seen.is_first[:, steps].flatten(0, 1)).cumprod(1)  # (B·count, H)
    kl = (categorical_kl(prior, text[:, 1:]) * weight).sum(1)  # (B·count,)
    reality = categorical_kl(seen.posterior[:, steps].flatten(0, 1).detach(), prior)  # (B·count, H)
    e = seen.state.e[:, steps].flatten(0, 1).detach()  # (B·count, H, dim_e)
    error = (e - imagined).square().sum(-1)
    return {
        "joint_behavior": (kl * shown.repeat_interleave(count)).mean(),
        "rollout": (reality.clamp(min=config.free_nats) * weight).sum(1).mean()
        + config.semantic_prediction * (error * weight).sum(1).mean(),
    }


def discounted(horizon: int, discount: float, device: torch.device) -> Tensor:
    """Weights w of Eq. 14 for steps 1..H, of sum 1: (H,)."""
    weight = discount ** torch.arange(1, horizon + 1, device=device)
    return weight / weight.sum()


def dynamics_loss(
    model: WorldModel,
    batch: Mapping[str, Tensor],
    labels: Labels,
    prompting: ObjectiveConfig,
    config: DynamicsConfig,
    noise: Noise,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Imagination's recurrence, the prior and the predictor of e alone, on fixed states: the posterior's modes.

    The posterior reads the image alone (Eq. 1), so that after the joint training it is a code of frames, and no
    image is read here. The KL of Eq. 12 to a mode is its cross-entropy, `kl_nats`. `rollout_nats` is that of the model
    running free under the data's actions, from frames that have a past. `rollout_states` is the mean square of its h
    less the filter's: actor and critics learn on filtered states, and read imagined ones right where the two agree.

    Args:
        prompting: how sequences get their prompts (`choose_prompts`).
        batch: modes (B, T, C) int64, and all but the frames that `joint_loss` reads.
    """
    raw = batch["embedding"].float()
    with torch.no_grad():
        task = model.task(choose_prompts(raw, batch["task"], labels, prompting, noise).embedding)
        e = model.adapter(batch.get("semantics", raw))  # (B, T, dim_e)
        s = F.one_hot(batch["modes"], model.config.categories).flatten(-2).float()  # (B, T, S)
        z = model.fuse(e, s, task.gates.unsqueeze(1))  # (B, T, dim_z)
    reset = batch["is_first"].clone()
    reset[:, 0] = True
    with torch.set_grad_enabled(model.config.reads_imagined):  # else the filter's recurrence stays as it is
        h = model.rssm.scan(z, batch["action"], reset, model.rssm.first(len(z)))  # (B, T, deter)
    codes = s.unflatten(-1, model.rssm.shape)  # (B, T, C, K)
    seen = Observed(State(h, z, e), s, codes, model.rssm.prior(h), batch["action"], batch["is_first"])
    follows = torch.ones_like(reset, dtype=torch.float32)
    follows[:, 0] = batch["is_first"][:, 0].float()
    forced = cross_entropy(batch["modes"], seen.prior)  # (B, T)
    errors = (e - model.predict_semantics(h, s)).square().sum(-1)  # (B, T)
    terms = {"kl_nats": (forced * follows).mean(), "semantic_prediction": errors.mean()}

    # Rollouts, begun where h has a past.
    start, steps, actions = seen.stretches(config.horizon, DYNAMICS_PAST, DYNAMICS_PAST)
    imagined, prior = model.follow(start, actions, task.repeat_interleave(len(steps)), noise)
    drawn = draw_state(prior.detach(), noise)  # (B·count, H, S)
    valid = (~seen.is_first[:, steps].flatten(0, 1)).cumprod(1).float()  # (B·count, H)
    free = cross_entropy(batch["modes"][:, steps].flatten(0, 1), prior)
    error = (e[:, steps].flatten(0, 1) - model.predict_semantics(imagined, drawn)).square().sum(-1)
    astray = (h[:, steps].flatten(0, 1).detach() - imagined).float().square().mean(-1)
    rollout = {"rollout_nats": free, "rollout_semantics": error, "rollout_states": astray}  # (B·count, H) each
    terms |= {name: (value * valid).mean() for name, value in rollout.items()}
    semantics = terms["semantic_prediction"] + terms["rollout_semantics"]
    nats = terms["kl_nats"] + terms["rollout_nats"]
    total = config.codes * nats + config.semantics * semantics + config.states * terms["rollout_states"]
    return total, {k: v.detach() for k, v in terms.items()}


def cross_entropy(target: Tensor, log_probs: Tensor) -> Tensor:
    """-Σ log p of the target's classes (..., C) over variables, log_probs (..., C, K): (...), nats."""
    return -log_probs.gather(-1, target.unsqueeze(-1)).sum((-2, -1))


def joint_loss(
    model: JointModel, batch: Mapping[str, Tensor], labels: Labels, config: ObjectiveConfig, noise: Noise
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_total of Eq. 11 and its terms, on a batch of the sampler.

    Args:
        batch: image (B, T, 3, 64, 64) uint8, action (B, T, A), is_first (B, T), embedding (B, T, dim_e), task (B,);
            and `semantics` (B, T, dim_e), where a backbone in the loop gives e_v instead of the stored embedding.
    """
    raw = batch["embedding"].float()
    prompts = choose_prompts(raw, batch["task"], labels, config, noise)
    task = model.task(prompts.embedding)
    e = model.adapter(batch.get("semantics", raw))  # (B, T, dim_e)
    seen = model.observe(batch["image"], batch["action"], batch["is_first"], e, task, noise)
    terms = world_model_loss(model, seen, batch["image"], config) | mllm_loss(model, seen, task, prompts.shown, config)
    total = config.world_model * (terms["kl"] + terms["image"])
    total = total + config.semantic_prediction * terms["semantic_prediction"]
    if config.mllm:
        total = total + config.mllm * (terms["semantic_reconstruction"] + terms["alignment"])
    if config.text_imagination:
        terms["text_imagination"] = text_imagination_loss(model, seen, task, prompts.shown)
        total = total + config.text_imagination * terms["text_imagination"]
    if config.joint_behavior:
        terms |= joint_behavior_loss(model, seen, task, prompts.shown, config, noise)
        total = total + config.joint_behavior * terms["joint_behavior"] + config.rollout * terms["rollout"]
    terms["gate"] = task.gates.mean()
    return total, {k: v.detach() for k, v in terms.items()}
