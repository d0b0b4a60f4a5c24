"""The page of prompts: what it asks, what it answers, and that it keeps to itself."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator

import pytest

from stages.report.playground import OWN_ONLY, Site
from stages.runtime.errors import BadInput


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(lambda prompt: f"<b>{prompt or 'the first'}</b>", None) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


def get(site: Site, path: str, host: str | None = None) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", site.server_port, timeout=20)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_a_prompt_is_answered(site: Site) -> None:
    assert get(site, "/")[:2] == (200, "<b>the first</b>")
    assert get(site, "/?prompt=walk%20fast")[:2] == (200, "<b>walk fast</b>")
    assert get(site, "/other")[0] == 404
    assert get(site, "/?prompt=" + "x" * 20_000)[0] == 414


def test_it_answers_this_machine_alone_and_the_browser_loads_nothing_else(site: Site) -> None:
    assert site.server_address[0] == "127.0.0.1"
    assert get(site, "/")[2]["Content-Security-Policy"] == OWN_ONLY
    assert get(site, "/", host="evil.example:7860")[0] == 403
    assert get(site, "/", host=f"localhost:{site.server_port}")[0] == 200


def test_a_port_that_is_taken_is_said(site: Site) -> None:
    with pytest.raises(BadInput, match="give another --port"):
        Site(str, site.server_port)
    with Site(str, None) as other:
        assert other.server_port != site.server_port
