"""The page itself, where Gradio is installed: what it asks, what it answers, and that it keeps to itself."""

from __future__ import annotations

from typing import Any

import pytest

from stages.report import playground
from stages.runtime.errors import BadInput

gradio: Any = pytest.importorskip("gradio")


def reply(prompt: str) -> str:
    if not prompt:
        raise BadInput("the prompt is empty")
    return f"<b>{prompt}</b>"


def test_a_prompt_is_answered_and_a_bad_one_explained() -> None:
    page = playground.build_page(gradio, "walker", ["walk fast"], reply)
    shown = next(f.fn for f in page.fns.values() if f.fn and f.fn.__name__ == "shown")
    assert shown("walk") == "<b>walk</b>"
    with pytest.raises(gradio.Error, match="the prompt is empty"):
        shown("")


def test_the_page_is_served_to_this_machine_and_loads_nothing_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "example.org")
    page = playground.build_page(gradio, "walker", ["walk fast"], reply)
    launched: dict[str, Any] = {}
    original = page.launch

    def launch(**options: Any) -> Any:
        launched.update(options)
        found = original(**options)
        launched["url"] = found[1]
        return found

    monkeypatch.setattr(page, "launch", launch)
    monkeypatch.setattr(page, "block_thread", lambda: None)
    said: list[str] = []
    monkeypatch.setattr(playground, "print", said.append, raising=False)
    try:
        playground.launch(gradio, page, None, quiet=False)
        answer = httpx.get(launched["url"])
    finally:
        page.close()
    assert launched["url"] in said[0]
    assert launched["server_name"] == "127.0.0.1" and launched["share"] is False
    assert launched["url"].startswith("http://127.0.0.1:")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
