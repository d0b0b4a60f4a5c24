"""What a trained run makes of any text: its text imagination, the data's nearest clips, a policy's rollout.

    answer = ask(scene, "walk slowly", Path("answer"))     # GIFs in the folder, with a caption each

`serve_page` asks from a web page, which is served to this machine alone and loads nothing from elsewhere: no fonts, no
analytics, no share link.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.backbones.probe import CLIPS, closest, similarities
from stages.policies.policy import Policy
from stages.report import diagnostics, figures
from stages.report.chapters import FILM_PAUSE, FILM_STRIDE
from stages.report.diagnostics import source_name
from stages.report.figures import Clip
from stages.report.page import Picture, inline, save_frames
from stages.report.scene import Scene
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import BadInput
from stages.worlds import tasks
from stages.worlds.motion import window_rows

DECISIONS = 200  # of a rollout in the real environment: two fifths of an episode
FIRST_SEED = 200_000  # no collected and no evaluated episode starts there


def ask(scene: Scene, prompt: str, folder: Path) -> list[Picture]:
    """Everything there is to see of a prompt, as GIFs in `folder`.

    Raises BadInput when the run has no model or its backbone has changed.
    """
    e = scene.backbone.encode_text([prompt]).to(scene.run.device)  # (1, dim_e)
    films = [_dream(scene, prompt, e, folder), _clips(scene, e, folder)]
    if scene.policies:
        films.append(_rollout(scene, prompt, e, folder))
    return films


def _dream(scene: Scene, prompt: str, e: Tensor, folder: Path) -> Picture:
    """The decoded text imagination (Eq. 7, 8), along no actions."""
    steps = scene.config.dream_steps
    with torch.no_grad():
        context = scene.model.task(e)
    actions = torch.zeros(1, steps, scene.model.dim_action, device=scene.run.device)
    clip = diagnostics.text_dream(scene.model, context, actions)[0]  # (H+1, 3, 64, 64)
    about = f"Text imagination of “{prompt}”, {steps} steps, decoded."
    return save_frames(folder, "dream.gif", about, figures.film([("", [clip])], scale=3), scene.pause)


def _clips(scene: Scene, e: Tensor, folder: Path) -> Picture:
    """The windows of the data whose embeddings are closest, one an episode, best first."""
    data = scene.dataset
    similarity = similarities(data, e.cpu().numpy())[0]  # (N,)
    rows = window_rows(np.append(data.episode_start, data.n_frames))
    found = closest(data, similarity, CLIPS)
    clips = [data.rows("image", rows[row]) for row in found]  # (8, 3, 64, 64) each
    film = figures.film([("", clips)], columns=[f"{similarity[row]:.2f}" for row in found])
    episodes = np.searchsorted(data.episode_start, found, side="right") - 1
    names = [source_name(data, int(data.episode_info.part[n]), "") for n in episodes]
    about = f"Closest clips of the data, with their cosine: {', '.join(names)}."
    return save_frames(folder, "clips.gif", about, film, scene.pause)


def _rollout(scene: Scene, prompt: str, e: Tensor, folder: Path) -> Picture:
    """A policy in the real environment: the one learned for this text, or for the closest there is."""
    artifact, learned, cosine = nearest_policy(scene, prompt, e)
    frames = rollout_frames(artifact, scene.run.domain, scene.run.device)
    about = f"Its policy in the real environment, {DECISIONS} decisions."
    if learned != prompt:
        about = f"No policy was learned for this text; this is the one for “{learned}” (cosine {cosine:.2f})."
    return save_frames(folder, "rollout.gif", about, figures.film([("", [frames])], scale=3), FILM_PAUSE)


def nearest_policy(scene: Scene, prompt: str, e: Tensor) -> tuple[Artifact, str, float]:
    """The policy whose prompt's embedding is closest to `e` (1, dim_e), its prompt and the cosine."""
    if prompt in scene.policies:
        return scene.policies[prompt], prompt, 1.0
    learned = list(scene.policies)
    cosine = (scene.backbone.encode_text(learned).to(e.device) @ e[0]).tolist()
    best = int(np.argmax(cosine))
    return scene.policies[learned[best]], learned[best], cosine[best]


def rollout_frames(artifact: Artifact, domain: str, device: str) -> Clip:
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


# ---------------------------------------------------------------------------- the page

HOST = "127.0.0.1"
FONTS = ("system-ui", "sans-serif")
OWN_ONLY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"  # what the browser may load, and from where


def serve_page(scene: Scene, port: int | None, check: Callable[[str], str]) -> None:
    """Open the page and answer until Ctrl-C.

    Args:
        port: None for the first free one from 7860.
        check: strips a prompt, or raises BadInput.

    Raises BadInput when Gradio is missing, the port is taken, or the run has no model.
    """
    gradio = import_gradio()
    title = f"BiTAgent: {scene.run.domain}, {scene.method}"
    examples = list(scene.prompts.values())
    _ = scene.model, scene.backbone, scene.dataset  # opened now: what is missing is said here, not in a browser
    page = build_page(gradio, title, examples, lambda prompt: answer(scene, check(prompt)))
    launch(gradio, page, port, scene.run.quiet)


def launch(gradio: ModuleType, page: Any, port: int | None, quiet: bool) -> None:
    """Serve a page to this machine alone. Raises BadInput when the port is taken."""
    from starlette.middleware import Middleware

    os.environ["no_proxy"] = "*"  # Gradio asks its own page whether it is up; nothing here needs a proxy
    theme = gradio.themes.Base(font=list(FONTS), font_mono=["monospace"])
    try:
        _, url, _ = page.launch(  # quiet, for Gradio's own words offer a public link
            server_name=HOST, server_port=port, share=False, ssr_mode=False, footer_links=[], quiet=True,
            prevent_thread_lock=True, theme=theme, app_kwargs={"middleware": [Middleware(KeepToItself)]},
        )  # fmt: skip
    except OSError as error:
        raise BadInput(f"the playground cannot listen on {HOST} ({error}); give another --port") from None
    if not quiet:
        print(f"open {url} in a browser on this machine; Ctrl-C ends it")
    page.block_thread()


def import_gradio() -> ModuleType:
    """Gradio, told to stay offline. Raises BadInput when it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gradio
    except ImportError:
        raise BadInput("the playground needs Gradio: pip install 'bitagent[playground]' -c constraints.txt") from None
    return gradio


def build_page(gradio: ModuleType, title: str, examples: list[str], reply: Callable[[str], str]) -> Any:
    """The page as Gradio's Blocks; `reply` turns a prompt into HTML, or raises BadInput."""

    def shown(prompt: str) -> str:
        try:
            return reply(prompt)
        except BadInput as error:
            raise gradio.Error(str(error)) from None

    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"## {title}\nWhat the model makes of a text: its imagination, the closest data, a policy.")
        prompt = gradio.Textbox(label="Prompt", placeholder=examples[0], max_length=2000)
        button = gradio.Button("Show", variant="primary")
        gradio.Examples([[text] for text in examples], prompt)
        films = gradio.HTML()
        for event in (button.click, prompt.submit):
            event(shown, prompt, films, api_visibility="private")
    return page


def answer(scene: Scene, prompt: str) -> str:
    """The films of a prompt as HTML with the GIFs inside."""
    with tempfile.TemporaryDirectory() as folder:
        films = [(inline(Path(folder) / film.file), escape(film.caption)) for film in ask(scene, prompt, Path(folder))]
    return "".join(
        f'<figure style="margin:1rem 0"><img src="{image}" alt="{caption}" style="max-width:100%">'
        f"<figcaption>{caption}</figcaption></figure>"
        for image, caption in films
    )


class KeepToItself:
    """ASGI middleware by which the browser refuses to load anything from another host."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", OWN_ONLY.encode())
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        await self.app(scope, receive, send_more)
