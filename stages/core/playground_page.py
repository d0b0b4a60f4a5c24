"""The playground's page: a text box, and the GIFs that `playground.ask` makes of what is typed.

It is served to this machine alone and loads nothing from elsewhere: no fonts, no analytics, no share link.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.core.playground import Film, ask
from stages.core.report import inline
from stages.core.scene import Scene
from stages.runtime.errors import BadInput

HOST = "127.0.0.1"
FONTS = ("system-ui", "sans-serif")
OWN_ONLY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"  # what the browser may load, and from where


def serve(scene: Scene, port: int | None, check: Callable[[str], str]) -> None:
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
    page = build(gradio, title, examples, lambda prompt: answer(scene, check(prompt)))
    launch(gradio, page, port, scene.run.quiet)


def launch(gradio: ModuleType, page: Any, port: int | None, quiet: bool) -> None:
    """Serve a page to this machine alone. Raises BadInput when the port is taken."""
    from starlette.middleware import Middleware

    try:
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            ssr_mode=False,
            footer_links=[],
            quiet=True,  # Gradio's own words offer a public link
            prevent_thread_lock=True,
            theme=gradio.themes.Base(font=list(FONTS), font_mono=["monospace"]),
            app_kwargs={"middleware": [Middleware(KeepToItself)]},
        )
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


def build(gradio: ModuleType, title: str, examples: list[str], reply: Callable[[str], str]) -> Any:
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
        return "".join(_figure(film) for film in ask(scene, prompt, Path(folder)))


def _figure(film: Film) -> str:
    caption = escape(film.caption)
    image = f'<img src="{inline(film.file)}" alt="{caption}" style="max-width:100%">'
    return f'<figure style="margin:1rem 0">{image}<figcaption>{caption}</figcaption></figure>'


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
