"""`lapilli serve`: what a call makes of its options, and which calls are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lapilli.app.cli import serve as verb
from lapilli.app.serve import running
from lapilli.app.serve.running import Service, public_name

REMEDY = "give --api-key too, or listen on 127.0.0.1"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """What the verb asks to be served."""
    services: list[Service] = []

    def take(service: Service, *, announce: Any) -> None:
        services.append(service)
        announce("here")

    monkeypatch.setattr(running, "serve", take)
    for name in ("LAPILLI_API_KEY", "LAPILLI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return services


def test_a_call_without_options_is_safe(run: Run, taken: list[Service]) -> None:
    assert run("serve") == (0, "", "serving here\n")
    assert taken == [Service()]
    assert (taken[0].host, taken[0].keys, taken[0].image_hosts) == ("127.0.0.1", (), ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_others_may_not_ask_without_a_key(run: Run, taken: list[Service], host: str) -> None:
    code, out, err = run("serve", "--host", host)
    assert (code, out) == (2, "")
    assert err.split()[1:] == f"--host {host} lets others ask: {REMEDY}".split()
    assert run("serve", "--host", host, "--api-key", " ")[0] == 2
    assert taken == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1"])
def test_this_machine_may_ask_without_a_key(run: Run, taken: list[Service], host: str) -> None:
    assert run("serve", "--host", host)[0] == 0


def test_a_key_opens_it_to_others(
    run: Run, taken: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("serve", "--host", "0.0.0.0", "--api-key", "a", "--api-key", "b")[0] == 0
    monkeypatch.setenv("LAPILLI_API_KEY", "c")
    assert run("serve", "--host", "0.0.0.0")[0] == 0
    assert [list(service.keys) for service in taken] == [["a", "b"], ["c"]]


def test_options_are_handed_on(run: Run, taken: list[Service]) -> None:
    run(
        "serve", "--allow-image-hosts", "a.org,b.org", "--allow-image-hosts", "c.org:81",
        "--max-images", 2, "--max-megapixels", 3, "--max-body-mb", 4, "--max-held-mb", 5,
        "--max-seconds", 6, "--max-waiting", 7, "--max-batch", 8, "--log-requests",
    )  # fmt: skip
    (service,) = taken
    limits = service.limits
    assert list(service.image_hosts) == ["a.org", "b.org", "c.org:81"]
    assert (limits.images, limits.pixels, limits.body_bytes) == (2, 3_000_000, 4 << 20)
    assert (limits.held_bytes, limits.answer_seconds, limits.waiting) == (5 << 20, 6, 7)
    assert (service.max_batch, service.logs_requests) == (8, True)


def test_what_is_not_installed_is_named(
    run: Run, taken: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "find_spec", lambda name: None if name == "uvicorn" else name)
    assert run("serve") == (
        1, "", "error: serving needs uvicorn: pip install 'lapilli[serve]'\n"
    )  # fmt: skip


def test_a_models_public_name_is_no_path(tmp_path: Any) -> None:
    folder = tmp_path / "deep" / "own"
    folder.mkdir(parents=True)
    assert public_name(str(folder)) == "own"
    assert public_name("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    assert public_name(None) == "lapilli-tiny"
