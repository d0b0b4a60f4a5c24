"""What a trained run makes of any text: its text imagination, the data's nearest clips, a policy's rollout.

    answer = ask(scene, "walk slowly", Path("answer"))     # GIFs in the folder, with a caption each

`stages/core/playground_page.py` asks from a web page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.backbones.probe import CLIPS, closest, similarities
from stages.core import diagnostics, figures
from stages.core.chapters import FILM_PAUSE, FILM_STRIDE
from stages.core.diagnostics import source_name
from stages.core.figures import Clip
from stages.core.scene import Scene
from stages.policies.policy import Policy
from stages.runtime.artifacts import Artifact
from stages.worlds import tasks
from stages.worlds.motion import window_rows

DECISIONS = 200  # of a rollout in the real environment: two fifths of an episode
FIRST_SEED = 200_000  # no collected and no evaluated episode starts there


@dataclass(frozen=True)
class Film:
    """A GIF and what it shows."""

    file: Path
    caption: str


def ask(scene: Scene, prompt: str, folder: Path) -> list[Film]:
    """Everything there is to see of a prompt, as GIFs in `folder`.

    Raises BadInput when the run has no model or its backbone has changed.
    """
    e = scene.backbone.encode_text([prompt]).to(scene.run.device)  # (1, dim_e)
    films = [_dream(scene, prompt, e, folder), _clips(scene, e, folder)]
    if scene.policies:
        films.append(_rollout(scene, prompt, e, folder))
    return films


def _dream(scene: Scene, prompt: str, e: Tensor, folder: Path) -> Film:
    """The decoded text imagination (Eq. 7, 8), along no actions."""
    steps = scene.config.dream_steps
    with torch.no_grad():
        context = scene.model.task(e)
    actions = torch.zeros(1, steps, scene.model.dim_action, device=scene.run.device)
    clip = diagnostics.text_dream(scene.model, context, actions)[0]  # (H+1, 3, 64, 64)
    figures.save_gif(folder / "dream.gif", figures.film([("", [clip])], scale=3), scene.pause)
    return Film(folder / "dream.gif", f"Text imagination of “{prompt}”, {steps} steps, decoded.")


def _clips(scene: Scene, e: Tensor, folder: Path) -> Film:
    """The windows of the data whose embeddings are closest, one an episode, best first."""
    data = scene.dataset
    similarity = similarities(data, e.cpu().numpy())[0]  # (N,)
    rows = window_rows(np.append(data.episode_start, data.n_frames))
    found = closest(data, similarity, CLIPS)
    clips = [data.rows("image", rows[row]) for row in found]  # (8, 3, 64, 64) each
    columns = [f"{similarity[row]:.2f}" for row in found]
    figures.save_gif(folder / "clips.gif", figures.film([("", clips)], columns=columns), scene.pause)
    episodes = np.searchsorted(data.episode_start, found, side="right") - 1
    names = [source_name(data, int(data.episode_info.part[n]), "") for n in episodes]
    return Film(folder / "clips.gif", f"Closest clips of the data, with their cosine: {', '.join(names)}.")


def _rollout(scene: Scene, prompt: str, e: Tensor, folder: Path) -> Film:
    """A policy in the real environment: the one learned for this text, or for the closest there is."""
    artifact, learned, cosine = nearest_policy(scene, prompt, e)
    frames = play(artifact, scene.run.domain, scene.run.device)
    figures.save_gif(folder / "rollout.gif", figures.film([("", [frames])], scale=3), FILM_PAUSE)
    if learned == prompt:
        about = f"Its policy in the real environment, {DECISIONS} decisions."
    else:
        about = f"No policy was learned for this text; this is the one for “{learned}” (cosine {cosine:.2f})."
    return Film(folder / "rollout.gif", about)


def nearest_policy(scene: Scene, prompt: str, e: Tensor) -> tuple[Artifact, str, float]:
    """The policy whose prompt's embedding is closest to `e` (1, dim_e), its prompt and the cosine."""
    if prompt in scene.policies:
        return scene.policies[prompt], prompt, 1.0
    learned = list(scene.policies)
    cosine = (scene.backbone.encode_text(learned).to(e.device) @ e[0]).tolist()
    best = int(np.argmax(cosine))
    return scene.policies[learned[best]], learned[best], cosine[best]


def play(artifact: Artifact, domain: str, device: str) -> Clip:
    """Every fourth frame of a policy's episode, up to DECISIONS: (T, 3, 64, 64) uint8."""
    policy = Policy.load(artifact.path, device)
    named = artifact.meta["config"]["tasks"] or tasks.task_names(domain)
    env = tasks.make_env(domain, named[0])
    env.reset(seed=FIRST_SEED)
    kept = []
    for decision in range(DECISIONS):
        frame = env.render()
        if decision % FILM_STRIDE == 0:
            kept.append(frame)
        large = env.render(policy.backbone_size) if policy.backbone_size > frame.shape[-1] else None
        env.step(policy.act(frame, large))
    return np.stack(kept)
