"""What the tests of the server ask, and whom."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from openai import OpenAI
from PIL import Image

from lapilli.engine.engine import Engine


@dataclass
class Served:
    """A server that answers."""

    engine: Engine
    port: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> OpenAI:
        """Return a client that asks once."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


Serve = Callable[..., AbstractContextManager[Served]]


def picture(seed: int) -> Image.Image:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def data_url(content: Image.Image | bytes, kind: str = "png") -> str:
    """A picture, or bytes as they are, as a data URL."""
    if isinstance(content, Image.Image):
        file = io.BytesIO()
        content.save(file, "png")
        content = file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def user(*parts: str | Image.Image) -> dict[str, object]:
    """A user's message of words and pictures."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]
    return {"role": "user", "content": content}
