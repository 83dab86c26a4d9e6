"""A hub on loopback: it speaks as much of the protocol as `huggingface_hub` asks for.

GET  /api/models/{id}/revision/{revision}      commit and files
GET  /api/models/{id}/tree/{commit}            files with sizes and hashes
HEAD /{id}/resolve/{commit}/{file}             a file's hash and size
GET  /{id}/resolve/{commit}/{file}             its content
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories, and what was asked for.

    Attributes:
        files: contents by name, by repository.
        gated: repositories whose files need the token.
        token: the one that opens them.
        status: answered to everything, where it is not None.
        breaks_after: bytes of a weight file after which its connection is cut, and then no more.
        delay_s: before the content of a weight file.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    revisions: tuple[str, ...] = ("main", COMMIT)
    status: int | None = None
    breaks_after: int | None = None
    delay_s: float = 0.0
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def add_folder(self, repository: str, folder: Path) -> None:
        self.files[repository] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def downloads(self) -> Counter[str]:
        """How often each file was fetched."""
        return Counter(
            line.rpartition("/")[2] for line in self.asked
            if line.startswith("GET") and "/resolve/" in line
        )  # fmt: skip


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer on a free port of this machine until the end of the block."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        self.hub.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if hub.status is not None:
            return self._send(hub.status, b"")
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        if is_api:
            parts = parts[2:]
        repository, kind, revision, *rest = "/".join(parts[:2]), *parts[2:]
        if repository not in hub.files:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in hub.revisions:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = hub.files[repository]
        if is_api and kind == "revision":
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            return self._json({"id": repository, "sha": COMMIT, "siblings": siblings})
        if is_api and kind == "tree":
            return self._json([_entry(name, data) for name, data in files.items()])
        if repository in hub.gated and self.headers["authorization"] != f"Bearer {hub.token}":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        return self._file("/".join(rest), files)

    def _file(self, name: str, files: dict[str, bytes]) -> None:
        if name not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = files[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if self.command == "GET" and name.endswith(".safetensors"):
            time.sleep(self.hub.delay_s)
            cut, self.hub.breaks_after = self.hub.breaks_after, self.hub.breaks_after
            if cut is not None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:cut])
                self.close_connection = True
                return None
        return self._send(200, data, headers)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
