"""Opens pictures, whatever holds them.

Whatever arrives is treated as hostile: bytes and pixels are counted before anything is decoded,
only raster formats are tried, and nothing is fetched from an address.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lapilli.errors import ImageError, ImageTooLargeError

MAX_BYTES = 64 * 1024**2
MAX_PIXELS = 64_000_000

# Pillow loads rarely used plugins only when it reaches a name it does not know yet, so the
# common formats stand first.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF")
_FORMATS_SHOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)

_SIZED_BY_HEADER = ("JPEG", "WEBP", "BMP", "PPM")
"""A GIF's frame may be larger than its header says, a TIFF turns when it is decoded."""
_TURNED_PNG = (b"eXIf", b"exif", b"com.adobe.xmp")
"""One of these stands in a PNG that says how it was held: a chunk, or the name of a text."""

# `warnings.catch_warnings` changes the whole process; only one header is read at a time.
_HEADER_LOCK = threading.Lock()


def open_image(
    source: Any, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Open a picture safely, upright, as RGB without metadata.

    The first frame stands for an animation, transparency is laid on white, and 16-bit values are
    scaled rather than clipped.

    Args:
        source: a path, a data URL, encoded bytes or a PIL image (which is left as it is).
        max_bytes: the largest file that is read.
        max_pixels: the largest picture that is decoded.

    Raises:
        ImageError: there is no picture, it is damaged, it is too large, or it lies elsewhere.
    """
    name, image, _ = _open(source, max_bytes, max_pixels)
    try:
        image.load()
        _check_pixels(name, image, max_pixels)  # a GIF frame may be larger than its header said
        return _to_rgb(_turn_upright(image))
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged files
        raise ImageError(
            f"{name}: damaged or unsupported picture ({_one_line(error)}). Save or copy it again."
        ) from error


def image_size(
    source: Any, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Return the height and width that `open_image` would give a picture; most are not decoded.

    Args: as in `open_image`.

    Raises:
        ImageError: as `open_image`, but for damage that the header does not show.
    """
    _, image, data = _open(source, max_bytes, max_pixels)
    if image.format == "PNG" and data and not any(mark in data for mark in _TURNED_PNG):
        return image.height, image.width  # to ask how it was held would decode it
    if image.format not in _SIZED_BY_HEADER:
        image = open_image(source, max_bytes=max_bytes, max_pixels=max_pixels)
    is_on_its_side = _orientation(image) in _ON_ITS_SIDE
    return (image.width, image.height) if is_on_its_side else (image.height, image.width)


def _open(source: Any, max_bytes: int, max_pixels: int) -> tuple[str, Image.Image, bytes]:
    """The name of a source for messages, the picture, not yet decoded, and its bytes."""
    if isinstance(source, Image.Image):
        _check_pixels("image", source, max_pixels)
        return "image", source, b""
    name, data = _read(source, max_bytes)
    return name, _read_header(name, data, max_pixels), data


def _read(source: Any, max_bytes: int) -> tuple[str, bytes]:
    """The name of a source for messages, and its bytes, at most `max_bytes` of them."""
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = "picture bytes", bytes(source)
    elif isinstance(source, str) and source[:5].lower() == "data:":
        name, data = "data URL", _decode_data_url(source, max_bytes)
    elif isinstance(source, str) and re.match(r"[A-Za-z][\w+.-]*://", source):
        raise ImageError(
            f"{_shorten(source)}: remote addresses are not fetched. Save the picture and give "
            "its path."
        )
    elif isinstance(source, str | Path):
        name = _shorten(str(source))
        data = _read_file(name, source, max_bytes)
    else:
        raise ImageError(
            f"{type(source).__name__}: not a picture source. Give a path, bytes, a data URL or "
            "a PIL image."
        )
    if not data:
        raise ImageError(f"{name}: 0 bytes, there is no picture in it. Save or copy it again.")
    if len(data) > max_bytes:
        raise _too_many_bytes(name, len(data), max_bytes)
    return name, data


def _read_file(name: str, source: str | Path, max_bytes: int) -> bytes:
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(f"{name}: a folder, not a picture. Name a file in it.")
        size = path.stat().st_size
        if size > max_bytes:
            raise _too_many_bytes(name, size, max_bytes)
        if not path.is_file():  # a pipe or a device might never end
            raise ImageError(f"{name}: not a regular file. Copy the picture into one.")
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file. Check the path.") from error
    except PermissionError as error:
        raise ImageError(f"{name}: may not be read. Change its permissions.") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ImageError(f"{name}: cannot be read ({_one_line(error)}). Check the path.") from error


def _decode_data_url(url: str, max_bytes: int) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError("data URL: no base64 data in it. Write data:image/png;base64,....")
    if len(body) * 3 // 4 - 2 > max_bytes:
        raise _too_many_bytes("data URL", len(body) * 3 // 4, max_bytes)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"data URL: bad base64 ({_one_line(error)}). Encode the picture again."
        ) from error


def _read_header(name: str, data: bytes, max_pixels: int) -> Image.Image:
    """Open without decoding, so that the size can be judged first."""
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # we judge the size ourselves, just below
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"{name}: more pixels than the limit of {max_pixels:,} (a decompression bomb?). "
            "Make the picture smaller."
        ) from error
    except Exception as error:
        raise ImageError(f"{name}: not a picture ({_kind(data)}). Use {_FORMATS_SHOWN}.") from error
    _check_pixels(name, image, max_pixels)
    return image


def _check_pixels(name: str, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name}: {width} x {height} pixels, more than the limit of {max_pixels:,}. "
            "Make the picture smaller."
        )
    if not width * height:
        raise ImageError(f"{name}: {width} x {height} pixels, there is nothing to see. Check it.")


def _too_many_bytes(name: str, size: int, max_bytes: int) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{name}: {size:,} bytes, more than the limit of {max_bytes:,}. Make the file smaller."
    )


def _kind(data: bytes) -> str:
    """What a file that is no picture seems to be, for the message."""
    start = data[:256].lstrip().lower()
    if start.startswith(b"%pdf"):
        return "it is a PDF"
    if start.startswith(b"%!ps"):
        return "it is PostScript"
    if start.startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
        return "it is SVG, XML or HTML"
    return "its contents are in no known format, or its header is damaged"


def _shorten(name: str) -> str:
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 200 else f"{name[:100]}...{name[-60:]}"


def _one_line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:120] or type(error).__name__


def _turn_upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a picture with damaged metadata is still a picture
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB picture without metadata."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if "A" in image.mode.upper().removeprefix("LAB") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    image.info = {}
    return image


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float gray values to 0-255 instead of clipping them."""
    # In place and in single precision: a file of some KB may hold the largest picture allowed.
    values = np.array(image, dtype=np.float32)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:  # wide modes do not say what white is: the next usual maximum above the values
        top = float(values.max())
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((maximum for maximum in usual if top <= maximum), top)
    values /= white
    values *= 255
    np.rint(values, out=values)
    np.clip(values, 0, 255, out=values)
    return Image.fromarray(values.astype(np.uint8))
