"""Pictures with damaged pixels are refused. Damaged metadata is ignored, and the picture is read."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.images.making import FILES, HEIGHT, PHOTO, WIDTH, chunk, png, rows, stored
from xpsr_jax.errors import UserError
from xpsr_jax.images.reading import decode_picture, read_picture, read_size


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_ends_too_early_is_refused(kind):
    data = stored(kind)
    assert decode_picture(data, "it").rgb.shape == PHOTO.shape
    for part in (0.02, 0.3, 0.6, 0.9, 0.97):
        with pytest.raises(UserError, match=r"^it: "):
            decode_picture(data[: int(part * len(data))], "it")


@pytest.mark.parametrize("kind", ["JPEG", "JPEG, 4:4:4", "JPEG, restarts"])
def test_a_jpeg_with_lost_data_is_refused_even_with_an_end_marker(kind):
    """libjpeg fills the lost part with grey and reports nothing. The same for a download that was padded with zeros."""
    data = stored(kind)
    for part in (0.6, 0.8, 0.95):
        kept = data[: int(part * len(data))]
        for rest in (b"\xff\xd9", bytes(len(data) - len(kept))):
            with pytest.raises(UserError, match="it: damaged"):
                decode_picture(kept + rest, "it")


EXIF = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # orientation 6


def test_a_png_with_late_exif(tmp_path):
    """To read it, Pillow decodes the pixels. If they are damaged, it returns a part of them at the second attempt."""
    packed = zlib.compress(rows(PHOTO))
    whole = png(chunk(b"IDAT", packed), chunk(b"eXIf", EXIF))
    file = tmp_path / "a.png"
    file.write_bytes(whole)
    np.testing.assert_array_equal(read_picture(file).rgb, np.rot90(PHOTO, -1))
    assert read_size(file) == (WIDTH, HEIGHT)
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(packed)
        damaged[rng.integers(2, len(packed))] ^= rng.integers(1, 256)
        for right_checksum in (False, True):
            content = bytes(damaged)
            data = png(chunk(b"IDAT", content), chunk(b"eXIf", EXIF))
            if not right_checksum:
                data = whole.replace(packed, content)
            with pytest.raises(UserError, match="it: damaged"):
                decode_picture(data, "it")


def test_a_png_with_missing_rows_is_refused():
    """The compressed data is complete, so nothing else is wrong with the file."""
    for count in (0, 1, HEIGHT - 1):
        with pytest.raises(UserError, match="rows of pixels are missing"):
            decode_picture(png(chunk(b"IDAT", zlib.compress(rows(PHOTO[:count])))), "it")


@pytest.mark.parametrize("kind", [kind for kind in ("PNG", "JPEG", "WEBP", "AVIF") if kind in FILES])
def test_a_picture_with_damaged_exif_is_read(kind):
    rng = np.random.default_rng(2)
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    exif.get_ifd(0x8825)[2] = (47.0, 22.0, 1.5)
    sound = exif.tobytes()
    whole = stored(kind, exif=sound)
    at = whole.index(sound[6:])
    expected = decode_picture(whole, "it")
    assert expected.exif is not None
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            data[at + rng.integers(len(sound) - 6)] = rng.integers(256)
        if kind == "PNG":
            place = whole.index(b"eXIf")
            data[place + len(sound) - 2 : place + len(sound) + 2] = struct.pack(
                ">I", zlib.crc32(data[place : place + len(sound) - 2])
            )
        picture = decode_picture(bytes(data), "it")
        assert sorted(picture.rgb.shape) == sorted(expected.rgb.shape)


def test_a_png_with_damaged_metadata_is_read():
    """Text and XMP over 1 MB, a profile with a wrong checksum, a damaged animation."""
    pixels = chunk(b"IDAT", zlib.compress(rows(PHOTO)))
    text = zlib.compress(b"x" * 3_000_000)
    wrong = chunk(b"iCCP", b"p\0\0" + zlib.compress(b"profile"))[:-1] + b"?"
    for more in (
        chunk(b"zTXt", b"workflow\0\0" + text),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + text),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + text),
        chunk(b"tEXt", b"workflow\0" + b"x" * 2_000_000),
        chunk(b"zTXt", b"workflow\0\0no zlib"),
        chunk(b"iCCP", b"p\0\0no zlib"),
        chunk(b"acTL", b"?"),
        chunk(b"pHYs", b"?"),
        wrong,
    ):
        for data in (png(more, pixels), png(pixels, more)):
            picture = decode_picture(data, "it")
            np.testing.assert_array_equal(picture.rgb, PHOTO)
            assert picture.icc_profile is None and picture.exif is None
