"""One episode for a text: the policy in the real environment, the text imagination beside it, the reward along it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from stages.policies.policy import LatentPolicy, Policy
from stages.report.diagnostics import decode, stretch_rewards
from stages.report.figures import COLORS, GAP, INK, PAPER, Clip
from stages.report.scene import Learned, Scene
from stages.worlds import tasks

DECISIONS = tasks.CONTROL_STEPS // tasks.ACTION_REPEAT
FIRST_SEED = 200_000  # no collected and no evaluated episode starts there
STRIDE, PAUSE = 4, 80  # every fourth decision is a frame, shown for 80 ms
SIZE, CHART, WORDS = 184, 100, 18  # pixels: a picture, the height of the chart, a line of text
SMOOTH = 8  # decisions behind a point of the learned reward, which reads windows of 8 frames


@dataclass(frozen=True)
class Performance:
    """What a text made of a policy.

    Args:
        learned: the prompt that the policy was trained on, the closest to `prompt`, with their cosine.
        task: whose reward `score` is of, 0 for a random policy and 1 for the expert; None where there is none.
        real, dream: (T, 3, S, S) and (D, 3, 64, 64) uint8, every fourth decision; D of what is imagined in one go.
        rewards: {name: one number a decision}; "true" lies in [0, 1].
    """

    prompt: str
    learned: str
    cosine: float
    task: str | None
    score: float | None
    real: Clip
    dream: Clip
    rewards: Mapping[str, np.ndarray]

    @property
    def caption(self) -> str:
        """What is to be seen, in one or two sentences."""
        scored = "" if self.score is None else f" Score {self.score:.2f} (0: random, 1: expert)."
        if self.prompt == self.learned:
            return f"“{self.prompt}”.{scored}"
        near = f"“{self.learned}” (cosine {self.cosine:.2f})"
        return f"“{self.prompt}”: no policy was learned for this text; the closest is {near}.{scored}"


def perform(scene: Scene, prompt: str) -> Performance:
    """Play the policy whose prompt is closest to the text, for one episode.

    Raises BadInput when the run has no policy or its backbone has changed.
    """
    embedding = scene.backbone.encode_text([prompt]).to(scene.run.device)  # (1, dim_e)
    learned, text, cosine = nearest_policy(scene, prompt, embedding)
    named = learned.artifact.meta["config"]["tasks"]
    task = named[learned.index] if named else None
    policy = Policy.load(learned.artifact.path, scene.run.device)
    assert isinstance(policy, LatentPolicy), "a scene has policies of world models alone"
    policy.reset(learned.index)

    # the episode
    env = tasks.make_env(scene.run.domain, task or tasks.task_names(scene.run.domain)[0])
    env.reset(seed=FIRST_SEED)
    states, actions, true, real = [], [torch.zeros(1, env.action_dim)], [], []
    for decision in range(DECISIONS):
        frame = env.render()
        if decision % STRIDE == 0:
            real.append(env.render(SIZE))
        large = env.render(policy.backbone_size) if policy.backbone_size > frame.shape[-1] else None
        action = policy.act(frame, large)
        assert policy.state is not None
        states.append(policy.state)
        actions.append(torch.from_numpy(action)[None])
        true.append(env.step(action).reward / tasks.ACTION_REPEAT)

    # what the model makes of the text along it
    with torch.no_grad():
        context, done = scene.model.task(embedding), torch.stack(actions, 1).to(scene.run.device)  # (1, T+1, A)
        z, _ = scene.model.text_rollout(done[:, 1 : scene.config.dream_steps + 1], context, None)
        dream = decode(scene.model, z[:, :-1:STRIDE])[0].cpu().numpy()
    seen = type(states[0])(*(torch.stack(part, 1) for part in zip(*(vars(s).values() for s in states), strict=True)))
    learnt = stretch_rewards(scene.model, seen, done[:, :-1], context, scene.config.reward_horizon)
    kernel = np.ones(min(SMOOTH, learnt[scene.policy_space].shape[1]))
    smooth = np.convolve(learnt[scene.policy_space][0].float().cpu().numpy(), kernel / len(kernel), "valid")
    rewards = {"learned": smooth} | ({"true": np.array(true)} if task else {})
    score = (
        tasks.normalized_score(tasks.get_task(scene.run.domain, task), tasks.ACTION_REPEAT * sum(true))
        if task
        else None
    )
    return Performance(prompt, text, cosine, task, score, np.stack(real), dream, rewards)


def nearest_policy(scene: Scene, prompt: str, e: torch.Tensor) -> tuple[Learned, str, float]:
    """The policy whose prompt's embedding is closest to `e` (1, dim_e), its prompt and the cosine."""
    if prompt in scene.policies:
        return scene.policies[prompt], prompt, 1.0
    known = list(scene.policies)
    cosine = (scene.backbone.encode_text(known).to(e.device) @ e[0]).tolist()
    best = int(np.argmax(cosine))
    return scene.policies[known[best]], known[best], cosine[best]


def film_of(shown: Performance) -> np.ndarray:
    """Policy and text imagination side by side over their reward: (T, H, W, 3) uint8."""
    width, top, chart = 2 * SIZE + GAP, WORDS, WORDS + SIZE + GAP
    blank = Image.new("RGB", (width, chart + CHART), PAPER)
    draw, font = ImageDraw.Draw(blank), ImageFont.load_default(11)
    for left, words in ((0, "the policy"), (SIZE + GAP, "the text, imagined")):
        draw.text((left + SIZE // 2, top // 2), words, INK, font, "mm")
    for column, (name, color) in enumerate(zip(shown.rewards, COLORS, strict=False)):
        draw.text((4 + 100 * column, chart + 2), f"{name} reward", color, font)
    lines = [
        (_points(values, width, chart), color) for values, color in zip(shown.rewards.values(), COLORS, strict=False)
    ]
    for points, _ in lines:
        draw.line(points, (222, 222, 222), 1)

    pages = []
    for t, pair in enumerate(zip(shown.real, cycle(shown.dream), strict=False)):
        page, here = blank.copy(), (t + 1) * width // len(shown.real)
        for left, frame in zip((0, SIZE + GAP), pair, strict=True):
            picture = Image.fromarray(frame.transpose(1, 2, 0)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            page.paste(picture, (left, top))
        for points, color in lines:
            ImageDraw.Draw(page).line([p for p in points if p[0] <= here], color, 2)
        pages.append(np.asarray(page))
    return np.stack(pages)


def _points(values: np.ndarray, width: int, top: int) -> list[tuple[int, int]]:
    """A line over the chart's whole width, from the least value to the greatest; one in [0, 1] between those."""
    low, high = min(0.0, values.min()), max(values.max(), 1e-6)
    if low == 0.0 and high <= 1.0:
        high = 1.0
    x = np.linspace(0, width - 1, len(values))
    y = top + CHART - 4 - (values - low) / (high - low) * (CHART - WORDS - 8)
    return [(int(a), int(b)) for a, b in zip(x, y, strict=True)]
