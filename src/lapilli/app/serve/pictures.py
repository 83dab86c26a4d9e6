"""Opens the pictures of a request, before it waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lapilli.app.serve.limits import Limits, Share
from lapilli.app.serve.refusals import Refusal, refusal_of
from lapilli.app.serve.remote import RemotePictures
from lapilli.errors import ImageError
from lapilli.processor.opening import MAX_PIXELS, image_size, open_image

_BYTES_PER_PIXEL = 6
"""Of an opened picture: RGB here, and once more when the engine has taken it up."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a picture is, and the parameter that says so."""

    url: str
    param: str


async def open_pictures(
    addresses: Sequence[Address], limits: Limits, remote: RemotePictures | None, share: Share
) -> list[Image.Image]:
    """Return pictures, upright and as RGB; no other request waits while they are decoded.

    Args:
        remote: fetches pictures from other hosts; None where that is off.

    Raises:
        Refusal: there are too many, or one cannot be had.
    """
    if len(addresses) > limits.images:
        raise Refusal("too_many_images", "messages")
    opened = []
    num_left = min(limits.pixels, MAX_PIXELS)
    for address in addresses:
        source = await _source(address, limits, remote, share)
        try:
            height, width = await asyncio.to_thread(
                image_size, source, max_bytes=limits.body_bytes, max_pixels=num_left
            )
            share.take(height * width * _BYTES_PER_PIXEL)
            image = await asyncio.to_thread(
                open_image, source, max_bytes=limits.body_bytes, max_pixels=num_left
            )
        except ImageError as error:
            raise refusal_of(error, address.param) from error
        num_left -= height * width
        opened.append(image)
    return opened


async def _source(
    address: Address, limits: Limits, remote: RemotePictures | None, share: Share
) -> str | bytes:
    """What `open_image` takes; never a path, for these are the server's own files."""
    scheme = address.url[:8].lower()
    if scheme.startswith("data:"):
        return address.url
    if not scheme.startswith(("http://", "https://")):
        raise Refusal("invalid_image_url", address.param)
    if remote is None:
        raise Refusal("remote_images_off", address.param)
    try:
        content = await remote.fetch(address.url, max_bytes=limits.body_bytes)
    except Refusal as refusal:
        raise Refusal(refusal.code, address.param) from refusal
    share.take(len(content))
    return content
