"""A page that asks for prompts and shows what a trained run makes of them.

    pictures = ask(scene, "walk slowly", Path("answer"))     # GIFs in the folder, with a caption each

`serve_page` answers this machine alone. The page loads nothing from elsewhere, and the browser is told to refuse what
would.
"""

from __future__ import annotations

import tempfile
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch

from stages.backbones.probe import CLIPS, closest, similarities
from stages.report import diagnostics, figures
from stages.report.diagnostics import source_name
from stages.report.page import Picture, inline, render_page, save_frames
from stages.report.performance import PAUSE, film_of, perform
from stages.report.scene import Scene
from stages.runtime.errors import BadInput
from stages.worlds.motion import window_rows

HOST, FIRST_PORT = "127.0.0.1", 7860
OWN_ONLY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'self'"
)
MAX_URL = 16_000  # characters: a prompt of the longest kind, escaped


def ask(scene: Scene, prompt: str, folder: Path) -> list[Picture]:
    """What there is to see of a prompt, as GIFs in `folder`: a policy beside the text imagination, the closest data.

    Raises BadInput when the run has no model or its backbone has changed.
    """
    if scene.policies:
        shown = perform(scene, prompt)
        films = [save_frames(folder, "policy.gif", shown.caption, film_of(shown), PAUSE)]
    else:
        films = [_dream(scene, prompt, folder)]
    return films + ([_clips(scene, prompt, folder)] if scene.model_artifact.meta["stage"] == "pretrain" else [])


def _dream(scene: Scene, prompt: str, folder: Path) -> Picture:
    """The decoded text imagination (Eq. 7, 8), along no actions."""
    steps = scene.config.dream_steps
    with torch.no_grad():
        context = scene.model.task(scene.backbone.encode_text([prompt]).to(scene.run.device))
    actions = torch.zeros(1, steps, scene.model.dim_action, device=scene.run.device)
    clip = diagnostics.text_dream(scene.model, context, actions)[0]  # (H+1, 3, 64, 64)
    about = f"Text imagination of “{prompt}”, {steps} steps, decoded. There is no policy yet."
    return save_frames(folder, "dream.gif", about, figures.film([("", [clip])], scale=3), scene.pause)


def _clips(scene: Scene, prompt: str, folder: Path) -> Picture:
    """The windows of the data whose embeddings are closest, one an episode, best first."""
    data = scene.dataset
    similarity = similarities(data, scene.backbone.encode_text([prompt]).cpu().numpy())[0]  # (N,)
    rows = window_rows(np.append(data.episode_start, data.n_frames))
    found = closest(data, similarity, CLIPS)
    clips = [data.rows("image", rows[row]) for row in found]  # (8, 3, 64, 64) each
    film = figures.film([("", clips)], columns=[f"{similarity[row]:.2f}" for row in found])
    episodes = np.searchsorted(data.episode_start, found, side="right") - 1
    names = [source_name(data, int(data.episode_info.part[n]), "") for n in episodes]
    about = f"Closest clips of the data, with their cosine: {', '.join(names)}."
    return save_frames(folder, "clips.gif", about, film, scene.pause)


# ---------------------------------------------------------------------------- the page


class Site(ThreadingHTTPServer):
    """The page on this machine; `reply` turns a prompt into HTML, or raises BadInput.

    Args:
        port: None for the first free one from 7860.

    Raises BadInput when the port is taken.
    """

    daemon_threads = True
    allow_reuse_address = False  # a port that is listened on is taken

    def __init__(self, reply: Callable[[str], str], port: int | None) -> None:
        self.reply = reply
        for number in [port] if port else range(FIRST_PORT, FIRST_PORT + 100):
            try:
                super().__init__((HOST, number), Answer)
                return
            except OSError as error:
                reason = error
        raise BadInput(f"the playground cannot listen on {HOST} ({reason}); give another --port") from None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    """One request: the page, answering the `prompt` in its address."""

    server: Site

    def do_GET(self) -> None:
        # A page of another site may have had its name resolved to this machine: its name is not ours.
        if self.headers.get("Host") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self._send(403, "this page is for the machine it runs on")
        elif len(self.path) > MAX_URL:
            self._send(414, "the prompt is too long")
        elif urlsplit(self.path).path != "/":
            self._send(404, "there is one page here, /")
        else:
            asked = parse_qs(urlsplit(self.path).query, keep_blank_values=True).get("prompt", [None])[0]
            with suppress(BrokenPipeError):  # the reader left
                self._send(200, self.server.reply(asked or ""))

    def _send(self, code: int, html: str) -> None:
        body = html.encode()
        self.send_response(code)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", OWN_ONLY),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal belongs to the command."""


def serve_page(scene: Scene, port: int | None, check: Callable[[str], str], *, browse: bool = False) -> None:
    """Open the page, with the first prompt answered, and go on until Ctrl-C.

    Args:
        port: None for the first free one from 7860.
        check: strips a prompt, or raises BadInput.
        browse: also show it in this machine's browser.

    Raises BadInput when the port is taken, or the run has no model.
    """
    examples = list(scene.policies) or list(scene.prompts.values())
    reply = make_reply(scene, examples, check)
    with Site(reply, port) as site:
        reply(examples[0])  # what is missing is said here, not in a browser
        if not scene.run.quiet:
            print(f"open {site.url} in a browser on this machine; Ctrl-C ends it", flush=True)
        if browse:
            webbrowser.open(site.url)
        try:
            site.serve_forever()
        except KeyboardInterrupt:
            print()


def make_reply(scene: Scene, examples: list[str], check: Callable[[str], str]) -> Callable[[str], str]:
    """From a prompt, by default the first example, to the whole page; each is played once, one at a time."""
    one_at_a_time = threading.Lock()
    title = f"BiTAgent: {scene.run.domain}, {scene.method}"

    @cache
    def films(prompt: str) -> list[tuple[str, str]]:
        with tempfile.TemporaryDirectory() as folder:
            return [(inline(Path(folder) / film.file), film.caption) for film in ask(scene, prompt, Path(folder))]

    def reply(prompt: str) -> str:
        asked, shown, error = prompt.strip() or examples[0], [], ""
        try:
            with one_at_a_time:
                shown = films(check(asked))
        except BadInput as refused:
            if asked == examples[0]:  # the run has what is needed, or there is no page
                raise
            error = str(refused)
        about = {"title": title, "prompt": asked, "examples": examples, "films": shown, "error": error}
        return render_page("playground.html.j2", about)

    return reply
