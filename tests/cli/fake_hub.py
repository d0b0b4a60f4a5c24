"""The part of the hub's HTTP API that its own client asks for when a folder is pushed and pulled, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

SHA = "0" * 40


class FakeHub(ThreadingHTTPServer):
    """{repository: {path: content}}; `refuse` answers every request with that status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refuse = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Answer(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if self.server.refuse:
            return self._json({"error": "refused"}, self.server.refuse)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault(name, {})
            return self._json({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":  # of the card
            assert json.loads(body)["content"].startswith("---\nlicense: mit\n")
            return self._json({"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        files = self.server.repositories.get(name)
        if files is None:
            return self._missing()
        if "/preupload/" in path:
            sent = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in sent]
            return self._json({"files": modes})
        if "/commit/" in path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._json({"commitUrl": f"{self.server.url}/{name}/commit/{SHA}", "commitOid": SHA})
        return self._json({"error": f"not faked: {path}"}, 501)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.server.refuse:
            return self._json({"error": "refused"}, self.server.refuse)
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            files = self.server.repositories.get(name)
            if files is None:
                return self._missing()
            if "/tree/" in path:
                rows = [{"type": "file", "path": p, "size": len(b), "oid": _oid(b)} for p, b in files.items()]
                return self._json(rows)
            siblings = [{"rfilename": p, "size": len(b), "blobId": _oid(b)} for p, b in files.items()]
            return self._json({"id": name, "modelId": name, "sha": SHA, "siblings": siblings, "tags": []})
        name, _, rest = path[1:].partition("/resolve/")
        content = self.server.repositories.get(name, {}).get(rest.partition("/")[2])
        if content is None:
            return self._missing()
        self._send(content, 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": SHA})

    do_HEAD = do_GET

    def _missing(self) -> None:
        self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _json(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), code, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
