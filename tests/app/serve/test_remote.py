"""Pictures from other hosts: from those that were allowed, and by no way around."""

from __future__ import annotations

import asyncio
import base64
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from asking import Serve, data_url, picture, user
from openai import BadRequestError

from lapilli.app.serve.application import Settings
from lapilli.app.serve.limits import Limits
from lapilli.app.serve.refusals import Refusal
from lapilli.app.serve.remote import RemotePictures, is_public

HOST = "pictures.example"


class Handler(BaseHTTPRequestHandler):
    """Pictures, and traps."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012 - shared on purpose

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        port = self.server.server_address[1]
        targets = {
            "/moved": "/picture",
            "/away": f"http://other.example:{port}/picture",
            "/within": f"http://127.0.0.1:{port}/picture",
            "/metadata": "http://169.254.169.254/latest",
            "/file": "file:///etc/passwd",
            "/round": "/round",
        }
        if self.path in targets:
            self.send_response(302)
            self.send_header("Location", targets[self.path])
            self.end_headers()
            return
        content = data_url(picture(1)).encode()
        if self.path == "/picture":
            content = base64.b64decode(content.partition(b",")[2])
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.path == "/endless":
            for _ in range(100):
                self.wfile.write(bytes(10_000))
        elif self.path == "/slow":
            time.sleep(2)
        else:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


async def here(host: str, _: int) -> list[str]:
    return ["127.0.0.1"]


def allowed_here(port: int, seconds: float = 20) -> RemotePictures:
    """Pictures of a host whose name leads to this machine, which is allowed for once."""
    return RemotePictures(
        [f"{HOST}:{port}"],
        seconds=seconds,
        resolver=here,
        is_allowed=lambda address: address == "127.0.0.1",
    )


def fetch(remote: RemotePictures, url: str, max_bytes: int = 100_000) -> bytes | str:
    """What is fetched, or the code of its refusal."""
    try:
        return asyncio.run(remote.fetch(url, max_bytes=max_bytes))
    except Refusal as refusal:
        return refusal.code


@pytest.mark.parametrize("path", ["picture", "moved"])
def test_a_picture_of_an_allowed_host_is_fetched_by_the_address_that_was_judged(
    port: int, path: str
) -> None:
    Handler.asked.clear()
    content = fetch(allowed_here(port), f"http://{HOST}:{port}/{path}")
    assert isinstance(content, bytes) and content.startswith(b"\x89PNG")
    assert {host for host, _ in Handler.asked} == {f"{HOST}:{port}"}


@pytest.mark.parametrize("path", ["away", "within", "metadata", "file"])
def test_a_redirect_leads_to_no_other_host(port: int, path: str) -> None:
    Handler.asked.clear()
    assert fetch(allowed_here(port), f"http://{HOST}:{port}/{path}") == "image_host_refused"
    assert [path for _, path in Handler.asked] == [f"/{path}"]


@pytest.mark.parametrize("path", ["round", "missing", "packed"])
def test_what_leads_nowhere_is_not_had(port: int, path: str) -> None:
    assert fetch(allowed_here(port), f"http://{HOST}:{port}/{path}") == "image_fetch_failed"


def test_bytes_and_time_are_bounded(port: int) -> None:
    assert fetch(allowed_here(port), f"http://{HOST}:{port}/endless") == "image_too_large"
    begun = time.monotonic()
    slow = fetch(allowed_here(port, seconds=0.5), f"http://{HOST}:{port}/slow")
    assert slow == "image_fetch_failed"
    assert time.monotonic() - begun < 1.9


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/picture",
        f"http://{HOST}/picture",
        f"http://{HOST}.evil.example:PORT/picture",
        f"http://evil.example\\@{HOST}:PORT/picture",
        f"http://{HOST}:PORT@evil.example/picture",
        f"http://user:word@{HOST}:PORT/picture",
        f"http://{HOST}%2eevil.example:PORT/picture",
        f"ftp://{HOST}:PORT/picture",
        "http:///picture",
        "http://[::1/picture",
        "http://\x00/picture",
    ],
)
def test_an_address_that_only_looks_allowed_is_not_asked(port: int, url: str) -> None:
    Handler.asked.clear()
    found = fetch(allowed_here(port), url.replace("PORT", str(port)))
    assert found in ("image_host_refused", "image_fetch_failed")
    assert Handler.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "2002:7f00:1::", "2002:a9fe:a9fe::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2001:0:7f00:1::", "localhost", "",
    ],
)  # fmt: skip
def test_an_address_within_is_never_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:127.0.0.1"], []]
)
def test_a_name_that_leads_within_is_refused_even_if_it_is_allowed(
    port: int, addresses: list[str]
) -> None:
    async def resolver(_: str, __: int) -> list[str]:
        return addresses

    Handler.asked.clear()
    remote = RemotePictures([f"{HOST}:{port}"], seconds=5, resolver=resolver)
    assert fetch(remote, f"http://{HOST}:{port}/picture") == "image_host_refused"
    assert Handler.asked == []


def test_loopback_is_refused_by_the_machines_own_names(port: int) -> None:
    remote = RemotePictures([f"localhost:{port}", f"127.0.0.1:{port}"], seconds=5)
    for name in ("localhost", "127.0.0.1"):
        assert fetch(remote, f"http://{name}:{port}/picture") == "image_host_refused"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("named", [HOST, "other.example", "127.0.0.1"])
def test_a_certificate_must_name_the_host_and_not_its_address(tmp_path: Path, named: str) -> None:
    kind = "IP" if named[0].isdigit() else "DNS"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-subj", "/CN=test", "-addext",
            f"subjectAltName={kind}:{named}", "-keyout", "key.pem", "-out", "cert.pem",
        ],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = own.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        remote = RemotePictures(
            [f"{HOST}:{port}"],
            seconds=20,
            resolver=here,
            is_allowed=lambda address: address == "127.0.0.1",
            trusted=ssl.create_default_context(cafile=str(tmp_path / "cert.pem")),
        )
        found = fetch(remote, f"https://{HOST}:{port}/picture")
        server.shutdown()
        thread.join()
    assert (found != "image_fetch_failed") == (named == HOST)


def test_the_newer_addresses_are_asked_too() -> None:
    async def newer(_: str, __: int) -> list[str]:
        return ["::1"]

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6

    try:
        server = Server(("::1", 0), Handler)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        remote = RemotePictures(
            [f"{HOST}:{port}"], seconds=20, resolver=newer, is_allowed=lambda _: True
        )
        found = fetch(remote, f"http://{HOST}:{port}/picture")
        server.shutdown()
        thread.join()
    assert isinstance(found, bytes)


def test_an_answer_about_a_picture_elsewhere_is_the_same(serve: Serve, port: int) -> None:
    settings = Settings("small", Limits(), remote=allowed_here(port))
    with serve(settings) as served, served.client() as client:

        def ask(message: object) -> str | None:
            reply = client.chat.completions.create(
                model="small",
                messages=[message],
                max_tokens=8,  # type: ignore[list-item]
            )
            return reply.choices[0].message.content

        def at(path: str) -> dict[str, object]:
            url = f"http://{HOST}:{port}/{path}"
            return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}

        assert ask(at("picture")) == ask(user(picture(1)))
        for path, code in (("away", "image_host_refused"), ("nothing", "invalid_image")):
            with pytest.raises(BadRequestError) as caught:
                ask(at(path))
            assert caught.value.code == code
            assert HOST not in str(caught.value)
