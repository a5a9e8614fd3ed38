"""The metadata of a result is correct: size, print resolution, colour profile."""

import io

import numpy as np
import pytest
from PIL import Image

from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import decode_picture, read_picture
from xpsr_jax.images.writing import SUFFIX_OF, write_picture

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def camera(**tags: float) -> bytes:
    exif = Image.Exif()
    details = exif.get_ifd(0x8769)
    details[40962], details[40963] = 9, 6
    for tag, value in tags.items():
        exif[int(tag.strip("_"))] = value
    return exif.tobytes()


def stored(format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", SUFFIX_OF)
@pytest.mark.parametrize(
    "source",
    [
        stored("JPEG", dpi=(300, 150)),
        stored("PNG", dpi=(300, 150)),
        stored("TIFF", dpi=(300, 150)),
        stored("WEBP", exif=camera(_282=300.0, _283=150.0, _296=2)),
        stored("JPEG", exif=camera(_282=300.0, _283=150.0, _296=2)),
    ],
    ids=["jpeg", "png", "tiff", "webp, exif", "jpeg, exif"],
)
def test_print_resolution_is_kept(tmp_path, format, source):
    picture = decode_picture(source, "it")
    write_picture(tmp_path / "a", picture, format=format)
    again = read_picture(tmp_path / "a")
    assert again.dpi == pytest.approx((300, 150), abs=0.02)  # PNG stores whole pixels per metre
    with Image.open(tmp_path / "a") as image:
        exif = image.getexif()
        assert format == "webp" or image.info["dpi"] == pytest.approx((300, 150), abs=0.02)
        assert 282 not in exif or (float(exif[282]), float(exif[283])) == pytest.approx((300, 150), abs=0.02)


def test_an_invalid_resolution_is_ignored():
    for dpi in ((0, 0), (1, 65535)):
        assert decode_picture(stored("JPEG", dpi=dpi), "it").dpi == (None if dpi[0] == 0 else dpi)
    assert decode_picture(stored("PNG", dpi=(1e7, 1e7)), "it").dpi is None
    for format in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        assert decode_picture(stored(format), "it").dpi in (None, pytest.approx((96, 96), abs=0.1))  # a BMP has 96


@pytest.mark.parametrize("format", SUFFIX_OF)
def test_exif_gets_the_size_of_the_result(tmp_path, format):
    picture = decode_picture(stored("JPEG", exif=camera()), "it")
    larger = Picture(RGB.repeat(4, 0).repeat(4, 1), exif=picture.exif)
    write_picture(tmp_path / "a", larger, format=format)
    with Image.open(tmp_path / "a") as image:
        details = image.getexif().get_ifd(0x8769)
    assert (details[40962], details[40963]) == (36, 24)


def test_a_large_profile_is_kept(tmp_path):
    """Pillow refuses to decompress a profile of more than 1 MB."""
    profile = np.random.default_rng(1).integers(0, 256, 3_000_000, np.uint8).tobytes()
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        assert decode_picture(stored(format, icc_profile=profile), "it").icc_profile == profile
    write_picture(tmp_path / "a.png", Picture(RGB, icc_profile=profile))
    assert read_picture(tmp_path / "a.png").icc_profile == profile


@pytest.mark.parametrize("format", SUFFIX_OF)
def test_a_picture_is_written_even_if_its_exif_cannot_be(tmp_path, format):
    """EXIF with a directory in the wrong place, which is removed; and EXIF that Pillow cannot write at all."""
    misplaced = b"II*\0\x08\0\0\0\1\0\x05\xa0\4\0\1\0\0\0\x08\0\0\0\0\0\0\0"
    data = stored("JPEG", exif=b"Exif\0\0" + misplaced)
    file = tmp_path / f"it{SUFFIX_OF[format]}"
    for picture in (decode_picture(data, "it"), Picture(RGB, exif=misplaced)):
        write_picture(file, picture, format=format)
        assert read_picture(file).rgb.shape == (6, 9, 3)
