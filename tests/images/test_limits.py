"""Files that are too large, not regular or in an unsupported format are refused before anything is decoded."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.images.making import FILES, chunk, png, stored
from xpsr_jax.errors import UserError
from xpsr_jax.images import reading
from xpsr_jax.images.limits import limit_from_millions
from xpsr_jax.images.reading import decode_picture, read_picture, read_size


def bombs() -> dict[str, bytes]:
    """Files of a few bytes that claim billions of pixels."""
    many = 60_000
    transparent = bytearray(stored("WEBP", np.zeros((8, 8, 4), np.uint8)))
    assert transparent[12:16] == b"VP8X"
    transparent[24:30] = 2 * (16_000).to_bytes(3, "little")
    jpeg = bytearray(stored("JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", many, many)
    j2k = stored("JPEG2000")
    j2k = j2k[j2k.index(b"\xff\x4f\xff\x51") :]
    gif = bytearray(stored("GIF"))
    gif[6:10] = struct.pack("<HH", many, many)
    tiff = [(256, many), (257, many), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, 10), (279, 100)]
    tiled = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, many), (323, many), (324, 200), (325, 9)]
    return {
        "png": png(chunk(b"IDAT", b"?"), size=(many, many)),
        "webp": bytes(transparent),
        "jpeg": bytes(jpeg),
        "jpeg 2000": j2k[:8] + struct.pack(">8I", many, many, 0, 0, many, many, 0, 0) + j2k[40:],
        "gif": bytes(gif),
        "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, many, many, 1, 24, 0, 0, 0, 0, 0, 0),
        "ppm": b"P6\n%d %d\n255\n" % (many, many),
        "tiff": tiff_of(tiff),
        "tiff, tiled": tiff_of(tiled),
    }


def tiff_of(tags: list[tuple[int, int]]) -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<4sIH", b"II*\0", 8, len(tags)) + entries + bytes(4 + 500)


@pytest.mark.parametrize("kind", bombs())
def test_the_limit_of_pixels_is_checked_first(tmp_path, kind):
    file = tmp_path / "bomb"
    file.write_bytes(bombs()[kind])
    for read in (read_size, read_picture):
        with pytest.raises(UserError, match=r"bomb: .* pixels are more than 64 million"):
            read(file)


@pytest.mark.parametrize("format", ["ICO", "ICNS", "EPS", "PDF", "TGA", "PCX", "DDS"])
def test_other_formats_are_not_opened(format):
    """Pillow would decode an ICO while opening it, and run another program for an EPS."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, format)
    with pytest.raises(UserError, match="it: not an image, or an unsupported format"):
        decode_picture(buffer.getvalue(), "it")


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "dangling", "folder", "missing"])
def test_only_regular_files_are_opened(tmp_path, kind):
    file = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.symlink_to({"device": "/dev/zero", "loop": "a.png", "dangling": "nowhere"}[kind])
    for read in (read_size, read_picture):
        with pytest.raises(UserError, match=r"a\.png cannot be read"):
            read(file)


def test_a_file_with_too_many_bytes_is_refused(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(stored("PNG"))
    assert read_size(file) == (37, 53)
    os.truncate(file, 16 * 64_000_000 + 1)  # a sparse file, which needs no disk space
    for read in (read_size, read_picture):
        with pytest.raises(UserError, match=r"a\.png cannot be read: it has 1,024,000,001 bytes"):
            read(file)


def test_no_limit_needs_no_memory(tmp_path):
    (tmp_path / "a.png").write_bytes(stored("PNG"))
    for millions in (1e6, float("inf")):
        limit = limit_from_millions("--max-megapixels", millions)
        assert read_picture(tmp_path / "a.png", max_pixels=limit).rgb.shape == (37, 53, 3)
        assert read_size(tmp_path / "a.png", max_pixels=limit) == (37, 53)


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("?"), RecursionError("?"), struct.error("?"), SyntaxError("?"), KeyError(9)]
)
def test_any_exception_of_a_decoder_is_one_line(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(reading, "to_rgb", fail)
    with pytest.raises(UserError, match=r"^it: (damaged|there is not enough memory)"):
        decode_picture(stored("PNG"), "it")


def test_nothing_global_in_pillow_is_changed():
    assert Image.MAX_IMAGE_PIXELS == 89_478_485 and not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", FILES)
def test_pillows_own_limit_has_no_effect(kind, monkeypatch):
    """Pillow's limit applies to the whole process. It must not matter for the limits here."""
    data = stored(kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_picture(data, "it").rgb.shape == (37, 53, 3)
