"""Opening pictures of every kind, and refusing what is none or too large."""

from __future__ import annotations

import base64
import io
import os
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from lapilli.errors import ImageError
from lapilli.processor.opening import image_size, open_image


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path) -> None:
    image = noise(9, 7)
    data = encode(image)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, bytearray(data), url, image):
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert opened.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "file_format", ["PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG", "AVIF"]
)
def test_common_formats_are_opened(file_format: str) -> None:
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    image = Image.new("RGB", (8, 6), (200, 30, 40))
    pixel = open_image(encode(image, file_format)).getpixel((4, 3))
    assert np.abs(np.array(pixel) - (200, 30, 40)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_orientation_is_applied_and_dropped(orientation: int, file_format: str) -> None:
    upright = noise(5, 3)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encode(stored, file_format, exif=exif))
    assert opened.size == (5, 3)
    assert opened.tobytes() == upright.tobytes()
    assert not opened.getexif()
    assert opened.info == {}


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF"])
def test_the_size_is_that_of_the_opened_picture(
    file_format: str, orientation: int | None, tmp_path: Path
) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encode(noise(9, 7), file_format, exif=exif)
    path = tmp_path / "photo"
    path.write_bytes(data)
    for source in (data, path, Image.open(io.BytesIO(data))):
        opened = open_image(source)
        assert image_size(source) == (opened.height, opened.width)


def test_a_size_is_read_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [encode(noise(9, 7), file_format) for file_format in ("PNG", "JPEG", "WEBP")]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("was decoded"))
    assert [image_size(source) for source in sources] == [(7, 9)] * 3


@pytest.mark.parametrize("mark", [b"tEXt" + b"exif\0", b"eXIf"])
def test_a_png_that_says_late_how_it_was_held_is_measured_upright(mark: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = mark + exif.tobytes()[6 if mark == b"eXIf" else 0 :]
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    data = encode(noise(9, 7))
    late = data[:-12] + chunk + data[-12:]
    opened = open_image(late)
    assert image_size(late) == (opened.height, opened.width)


def test_the_callers_image_is_left_as_it_was() -> None:
    image = noise(4, 4)
    image.info["comment"] = "mine"
    opened = open_image(image)
    opened.putpixel((0, 0), (1, 2, 3))
    assert image.info == {"comment": "mine"}
    assert image.tobytes() == noise(4, 4).tobytes()


def test_transparency_is_laid_on_white() -> None:
    white, red = (255, 255, 255), (255, 0, 0)
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((0, 0), (9, 9, 9, 0))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([9, 9, 9, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    for source in (
        encode(rgba),
        encode(palette, transparency=0),
        encode(palette, "GIF", transparency=0),
    ):
        opened = open_image(source)
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [white, red]
    gray = Image.new("LA", (1, 1), (0, 128))
    assert open_image(encode(gray)).getpixel((0, 0)) == (127, 127, 127)


def test_one_bit_cmyk_and_palette_become_rgb() -> None:
    assert open_image(encode(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255, 255, 255)
    cmyk = open_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.array(cmyk.getpixel((4, 4))) - (255, 0, 0)).max() <= 8
    palette = noise(4, 4).convert("P", palette=Image.Palette.ADAPTIVE)
    assert open_image(encode(palette)).tobytes() == palette.convert("RGB").tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_is_scaled_not_clipped(file_format: str) -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    opened = np.asarray(open_image(encode(Image.fromarray(values), file_format)))
    assert opened[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[-1.0, 51.0, np.nan]], np.float32), [0, 51, 0]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
        (np.array([[0, 500_000, 1_000_000]], np.int32), [0, 128, 255]),
    ],
)
def test_wide_values_are_scaled_by_the_range_they_use(values, expected: list[int]) -> None:
    opened = np.asarray(open_image(encode(Image.fromarray(values), "TIFF")))
    assert opened[0, :, 0].tolist() == expected


def test_a_wide_picture_takes_little_more_memory_than_its_pixels() -> None:
    side = 1000
    data = encode(Image.fromarray(np.full((side, side), 3, np.uint16)))
    tracemalloc.start()
    try:
        open_image(data)
        assert tracemalloc.get_traced_memory()[1] < 10 * side * side
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_first_frame_stands_for_an_animation(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_pixels_are_counted_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(
        ImageError, match=r"^picture bytes: 9000 x 9000 pixels, more than the limit"
    ):
        open_image(png_that_claims(9000, 9000))


@pytest.mark.parametrize("side", [10_000, 12_000, 60_000])
def test_a_bomb_is_refused_without_a_warning(side: int) -> None:
    with pytest.raises(ImageError, match=r"more .*than the limit of 64,000,000") as caught:
        open_image(png_that_claims(side, side))
    assert "\n" not in str(caught.value)


def test_a_picture_between_pillows_limits_and_ours_is_judged_by_ours() -> None:
    with pytest.raises(ImageError, match="damaged or unsupported"):  # it lacks its data, no more
        open_image(png_that_claims(10_000, 10_000), max_pixels=10**9)


def test_bad_files_are_one_clear_line(tmp_path: Path) -> None:
    jpeg = encode(noise(64, 64), "JPEG")
    files = {
        "empty.jpg": (b"", r"0 bytes, there is no picture in it\. Save or copy it again\."),
        "notes.jpg": (b"hello there", r"not a picture \(its contents are in no known format"),
        "page.pdf": (b"%PDF-1.7 ...", r"not a picture \(it is a PDF\)\. Use JPEG, PNG"),
        "art.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", r"not a picture \(it is PostScript\)"),
        "art.svg": (b"<svg xmlns='x'/>", r"not a picture \(it is SVG, XML or HTML\)"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], r"damaged or unsupported picture \(.*truncated"),
        "cut.png": (encode(noise(64, 64))[:3000], r"damaged or unsupported picture \("),
        "head.jpg": (jpeg[:10], r"not a picture"),
    }
    for name, (data, message) in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: {message}") as caught:
            open_image(path)
        assert "\n" not in str(caught.value)


def test_places_without_a_picture_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"photo\.jpg: no such file\. Check the path\.$"):
        open_image(tmp_path / "photo.jpg")
    with pytest.raises(ImageError, match=r": a folder, not a picture\. Name a file in it\.$"):
        open_image(str(tmp_path))
    with pytest.raises(ImageError, match=r": cannot be read \(.*too long\)") as caught:
        open_image("x" * 5000)
    assert len(str(caught.value)) < 400
    with pytest.raises(ImageError, match=r"a\\x00b'?: cannot be read"):
        open_image("a\x00b")
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with pytest.raises(ImageError, match="not a regular file"):
        open_image(fifo)
    with pytest.raises(ImageError, match="list: not a picture source"):
        open_image([1, 2])


def test_missing_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(noise(2, 2)))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # chmod does not stop a test run as root

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png: may not be read\. Change its permissions"):
        open_image(path)


@pytest.mark.parametrize(
    "address", ["http://a.b/c.png", "HTTPS://a.b/c.png", "ftp://x", "file:///e"]
)
def test_addresses_are_never_fetched(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", never)
    with pytest.raises(ImageError, match="remote addresses are not fetched"):
        open_image(address)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,@@@@", "bad base64"),
        ("data:image/png;base64,abc", "bad base64"),
        ("data:image/png,rawbytes", "no base64 data"),
        ("data:image/png;base64", "no base64 data"),
        ("data:image/png;base64,", "0 bytes"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "bad base64"),
        ("data:image/png;base64,aGVsbG8=", "not a picture"),
    ],
)
def test_bad_data_urls_are_one_clear_line(url: str, message: str) -> None:
    with pytest.raises(ImageError, match=f"^data URL: {message}"):
        open_image(url)


def test_files_over_the_byte_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(encode(noise(20, 20)))
    data = path.read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, data, url):
        with pytest.raises(ImageError, match=r"bytes, more than the limit of 100\. Make the file"):
            open_image(source, max_bytes=100)
        assert open_image(source, max_bytes=len(data)).size == (20, 20)


def test_a_pil_image_over_the_limit_is_refused() -> None:
    with pytest.raises(ImageError, match=r"^image: 20 x 20 pixels, more than the limit of 399\."):
        open_image(noise(20, 20), max_pixels=399)
    with pytest.raises(ImageError, match="there is nothing to see"):
        open_image(Image.new("RGB", (0, 5)))
