"""Bad input of every kind: the right status, a stable code, and a server that goes on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from asking import Serve, Served, data_url, picture, user
from openai import APIStatusError, AuthenticationError, OpenAI
from PIL import Image

from lapilli.app.serve.application import Settings
from lapilli.app.serve.limits import Limits
from lapilli.app.serve.refusals import REFUSALS

CHAT = "/v1/chat/completions"


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def web(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as made:
        yield made


@pytest.fixture(autouse=True)
def server_lives_and_forgets(served: Served, web: httpx.Client) -> Iterator[None]:
    """After every test the server answers, and holds nothing."""
    yield
    assert web.get("/health").json() == {"status": "ok"}
    assert held_bytes(web) == 0


def held_bytes(web: httpx.Client) -> float:
    lines = web.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("lapilli_held_bytes ")))


def ask(web: httpx.Client, message: Any, **settings: Any) -> httpx.Response:
    body = {"model": "small", "messages": [message], "max_tokens": 4} | settings
    return web.post(CHAT, json=body)


def look(web: httpx.Client, url: str) -> httpx.Response:
    return ask(web, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})


def check_refusal(response: httpx.Response, code: str, param: str | None = None) -> None:
    status, text = REFUSALS[code]
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["message"]) == (status, code, text)
    if param is not None:
        assert error["param"] == param


# Pictures

NOISE = Image.effect_noise((64, 48), 90).convert("RGB")
JPEG = encoded(NOISE, "jpeg")
BROKEN = {
    "a truncated JPEG": JPEG[: len(JPEG) // 2],
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "HEIC": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64),
    "nothing": b"",
    "words": b"no picture",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_refused(web: httpx.Client, name: str) -> None:
    check_refusal(
        look(web, data_url(BROKEN[name], "jpeg")),
        "invalid_image",
        "messages.0.content.0.image_url.url",
    )


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,@@@@",
        "data:image/png;base64,AAA",
        "data:image/png,plain",
        "data:",
        "data:image/png;base64,\u00e9\u00e9\u00e9\u00e9",
    ],
)
def test_bad_base64_is_refused(web: httpx.Client, url: str) -> None:
    check_refusal(look(web, url), "invalid_image")


@pytest.mark.parametrize(
    "url", [str(Path(__file__)), "file:///etc/passwd", "ftp://host/a.png", "a.png", "", "C:\\a.png"]
)
def test_a_file_of_the_server_is_never_opened(web: httpx.Client, url: str) -> None:
    check_refusal(look(web, url), "invalid_image_url")


def test_no_address_is_fetched_unless_allowed(web: httpx.Client, served: Served) -> None:
    check_refusal(look(web, f"{served.url}/a.png"), "remote_images_off")
    assert ask(web, user(f"Look at {served.url}/secret.png")).status_code == 200
    assert "other" not in web.get("/metrics").text  # nobody has asked for it


def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(web: httpx.Client) -> None:
    bomb = encoded(Image.new("1", (9000, 9000)), "png")
    assert len(bomb) < 100_000
    check_refusal(look(web, data_url(bomb)), "image_too_large")
    half = data_url(encoded(Image.new("1", (5000, 5000)), "png"))
    several = [{"type": "image_url", "image_url": {"url": half}}] * 2
    check_refusal(ask(web, {"role": "user", "content": several}), "image_too_large")


def rotated(tag: int) -> bytes:
    image = Image.linear_gradient("L").resize((40, 20)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded(image, "png", exif=exif)


def deep_gray() -> bytes:
    values = np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)
    return encoded(Image.fromarray(values), "png")


def palette() -> bytes:
    image = Image.effect_noise((32, 32), 90).convert("P")
    return encoded(image, "png", transparency=3)


FRAMES = [picture(seed) for seed in range(3)]
GOOD = {
    "16 bits": deep_gray(),
    "CMYK": encoded(NOISE.convert("CMYK"), "jpeg"),
    "a palette with transparency": palette(),
    "an animated GIF": encoded(FRAMES[0], "gif", save_all=True, append_images=FRAMES[1:]),
    "an animated WebP": encoded(FRAMES[0], "webp", save_all=True, append_images=FRAMES[1:]),
    "a strip": encoded(Image.effect_noise((10000, 1), 90), "png"),
    "a strip on end": encoded(Image.effect_noise((1, 10000), 90), "png"),
    "a wrong kind": JPEG,  # sent as image/png
    **{f"EXIF {tag}": rotated(tag) for tag in range(1, 9)},
}


@pytest.mark.parametrize("name", GOOD)
def test_an_unusual_picture_is_seen_as_it_is_shown(web: httpx.Client, name: str) -> None:
    from lapilli.processor.opening import open_image

    shown = open_image(GOOD[name])
    assert shown.mode == "RGB"
    first, second = look(web, data_url(GOOD[name])), ask(web, user(shown))
    assert first.status_code == 200
    assert first.json()["choices"][0]["message"] == second.json()["choices"][0]["message"]


# Words and settings


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "missing_parameter"),
        (b"[]", "invalid_json"),
        (b'"words"', "invalid_json"),
        (b'{"model": "small", "messages": [{"role": "user", "content": "\xff\xfe"}]}', None),
        (b'{"model": "small", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
        (b"[" * 100_000, "invalid_json"),
        (b'{"n": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"model": "small", "x": ' + b"[" * 100 + b"]" * 100 + b"}", "invalid_json"),
    ],
)
def test_a_body_that_is_not_json_is_refused(
    web: httpx.Client, body: bytes, code: str | None
) -> None:
    response = web.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    found = response.json()["error"]["code"]
    check_refusal(response, code or found)
    assert found in ("invalid_json", "invalid_value", "missing_parameter")


def test_json_by_another_name_is_refused(web: httpx.Client) -> None:
    """A page in a browser may send these unasked; JSON it may not."""
    body = json.dumps({"model": "small", "messages": [user("?")]})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = web.post(CHAT, content=body, headers={"Content-Type": kind})
        check_refusal(response, "invalid_json")


@pytest.mark.parametrize(
    ("settings", "code", "param"),
    [
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": "12"}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 5}, "invalid_value", "max_completion_tokens"),
        ({"temperature": -0.1}, "invalid_value", "temperature"),
        ({"temperature": 1e300}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 9}, "invalid_value", "n"),
        ({"seed": 2**63}, "invalid_value", "seed"),
        ({"stop": [""]}, "invalid_value", None),
        ({"stop": ["a"] * 17}, "invalid_value", None),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"frequency_penalty": 0.5}, "invalid_value", "frequency_penalty"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"surprise": 1}, "unknown_parameter", "surprise"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "robot", "content": "?"}]}, "invalid_value", "messages.0"),
        ({"messages": [{"role": "user", "content": " "}]}, "invalid_value", "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "missing_parameter", "messages.0.user.content"),
        ({"model": None}, "invalid_value", "model"),
        ({"model": "large"}, "model_not_found", "model"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "1", "content": "?"}]},
            "invalid_value",
            "messages.0.tool_call_id",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "no"}},
                }
            },
            "invalid_schema",
            None,
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(
    web: httpx.Client, settings: dict[str, Any], code: str, param: str | None
) -> None:
    check_refusal(ask(web, {"role": "user", "content": "?"}, **settings), code, param)


@pytest.mark.parametrize("count", [10_000, 1_000_000])
def test_a_prompt_that_leaves_no_room_is_refused(web: httpx.Client, count: int) -> None:
    check_refusal(ask(web, user("a" * count)), "context_length_exceeded")
    response = web.post("/v1/completions", json={"model": "small", "prompt": "a" * count})
    check_refusal(response, "context_length_exceeded")


def test_messages_that_the_template_does_not_take_are_refused(
    web: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lapilli.processor.builtin import TEMPLATES

    monkeypatch.setattr(served.engine.processor, "template", TEMPLATES["vicuna_v1"])
    late = {"role": "system", "content": "Late."}
    body = {"model": "small", "messages": [user("?"), late]}
    check_refusal(web.post(CHAT, json=body), "invalid_prompt")


def test_a_refusal_names_no_path_no_address_and_no_words(web: httpx.Client) -> None:
    url = "data:image/png;base64," + base64.b64encode(b"a secret").decode()
    for response in (
        look(web, url),
        look(web, "/etc/passwd"),
        ask(web, user("?"), secret="secret"),
    ):
        message = response.json()["error"]["message"]
        assert "secret" not in message and "/" not in message


def test_the_official_client_reads_refusals(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(model="small", messages=[], max_tokens=-1)
    assert (caught.value.status_code, caught.value.code) == (400, "invalid_value")


def test_what_is_not_there_is_said_in_the_same_form(web: httpx.Client) -> None:
    check_refusal(web.get("/v1/nothing"), "not_found")
    check_refusal(web.get(CHAT), "method_not_allowed")
    assert web.get(CHAT).headers["allow"] == "POST"


# Limits and keys


def test_limits_have_their_own_codes(serve: Serve) -> None:
    limits = Limits(body_bytes=20_000, images=1, held_bytes=65_000, characters=100)
    with (
        serve(Settings("small", limits)) as small,
        httpx.Client(base_url=small.url, trust_env=False) as web,
    ):
        check_refusal(ask(web, user("a" * 30_000)), "body_too_large")
        check_refusal(ask(web, user("a" * 101)), "context_length_exceeded")
        check_refusal(ask(web, user(picture(1), picture(2))), "too_many_images")
        gray = encoded(Image.new("1", (120, 100)), "png")
        check_refusal(look(web, data_url(gray)), "overloaded")

        def endless() -> Iterator[bytes]:
            for _ in range(30):
                yield b" " * 1000

        response = web.post(CHAT, content=endless(), headers={"Content-Type": "application/json"})
        check_refusal(response, "body_too_large")
        assert ask(web, user(picture(1))).status_code == 200
        assert held_bytes(web) == 0


def test_without_its_key_nothing_but_health_is_told(serve: Serve) -> None:
    with serve(Settings("small", keys=("first", "second"))) as locked:
        with httpx.Client(base_url=locked.url, trust_env=False) as web:
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                check_refusal(web.get(path), "invalid_api_key")
            for given in ("Bearer wrong", "Basic first", "Bearer", "Bearer first,second", "first"):
                response = web.get("/v1/models", headers={"Authorization": given})
                check_refusal(response, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
            assert web.get("/health", headers={"Host": "elsewhere"}).status_code == 200
        for key in ("first", "second"):
            with locked.client(key) as client:
                assert client.models.list().data
        with locked.client("third") as client, pytest.raises(AuthenticationError):
            client.models.list()


def test_without_keys_another_name_for_this_machine_is_refused(web: httpx.Client) -> None:
    """A page in a browser can have its own name lead here, and then ask."""
    port = web.base_url.port
    for name in ("elsewhere.example", f"elsewhere.example:{port}", "", "127.0.0.1.nip.io"):
        check_refusal(web.get("/v1/models", headers={"Host": name}), "wrong_host")
    for name in ("localhost", f"LOCALHOST:{port}", "[::1]:80", "127.0.0.2"):
        assert web.get("/v1/models", headers={"Host": name}).status_code == 200
