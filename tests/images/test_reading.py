import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.images.making import PROFILE, camera_exif
from xpsr_jax.errors import UserError
from xpsr_jax.images.limits import limit_from_millions
from xpsr_jax.images.reading import read_image, read_picture, read_size
from xpsr_jax.images.writing import SUFFIX_OF, write_picture

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.ppm"])
def test_lossless_files_are_read_exactly(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), RGB)
    assert read_size(tmp_path / name) == (6, 9)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_files_are_read_closely(tmp_path, name):
    Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8)).save(tmp_path / name, quality=95)
    assert np.abs(np.int32(read_image(tmp_path / name)) - (200, 100, 50)).max() <= 4


def test_the_suffix_does_not_matter(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a"), RGB)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # must be rotated by 90 degrees clockwise
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(RGB, -1))
    assert read_size(tmp_path / "a.png") == (9, 6)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.mpo", "a.webp", "a.tif"])
def test_the_size_from_the_header_is_that_of_the_upright_picture(tmp_path, name):
    for orientation in range(1, 10):  # 9 is invalid
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(RGB).save(tmp_path / name, exif=exif)
        expected = (9, 6) if 5 <= orientation <= 8 else (6, 9)
        assert read_size(tmp_path / name) == expected == read_picture(tmp_path / name).rgb.shape[:2], orientation


def test_the_orientation_of_a_tiff_may_be_in_its_xmp(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.tif", tiffinfo={700: b'<x tiff:Orientation="6"/>'})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.rot90(RGB, -1))
    assert read_size(tmp_path / "a.tif") == (9, 6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey(tmp_path, suffix):
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}")[0, :, 0], [0, 0, 1, 128, 255])


def test_16_bit_colour(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((2, 2, 3), (0, 32768, 65535), np.uint16))  # BGR
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, 0], [255, 128, 0])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ppm", "a.jp2"])
def test_all_16_bit_values_are_rounded_in_the_same_way(tmp_path, name):
    """In grey and in colour, values are divided by 257 and rounded. They are not cut to the upper eight bits."""
    import cv2

    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    values = np.random.default_rng(5).permutation(65536).astype(np.uint16)[: 3 * 128 * 96].reshape(96, 128, 3)
    expected = np.round(values / 257).astype(np.uint8)
    cv2.imwrite(str(tmp_path / name), values[..., ::-1], lossless if name == "a.jp2" else [])
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)
    if name != "a.ppm":
        Image.fromarray(values[..., 0]).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0], expected[..., 0])


def test_16_bit_grey_as_8_bit_grey(tmp_path):
    """Its profile is applied. Only its transparent value is transparent, not other values that round to the same."""
    grey = np.random.default_rng(4).integers(0, 255, (6, 9), np.uint8)
    grey[0, 0] = 55  # in a linear profile, 55 / 255 = 0.216 of the light, which is 128 in sRGB
    grey[5, 8] = 60
    for name, pixels, scale in [("8.png", grey, 1), ("16.png", np.uint16(grey) * 257, 257)]:
        Image.fromarray(pixels).save(tmp_path / name, icc_profile=linear_grey_profile(), transparency=60 * scale)
    expected, picture = read_picture(tmp_path / "8.png"), read_picture(tmp_path / "16.png")
    np.testing.assert_array_equal(picture.rgb, expected.rgb)
    np.testing.assert_array_equal(picture.alpha, np.where(grey == 60, 0, 255))
    np.testing.assert_array_equal(picture.alpha, expected.alpha)
    assert abs(int(picture.rgb[0, 0, 0]) - 128) <= 1 and picture.icc_profile is None
    Image.fromarray(np.array([[300, 301]], np.uint16)).save(tmp_path / "near.png", transparency=300)
    assert read_picture(tmp_path / "near.png").alpha.tolist() == [[0, 255]]


def linear_grey_profile() -> bytes:
    """An ICC profile, version 2, for grey values that are proportional to light."""
    white = b"XYZ " + struct.pack(">4x3i", 63190, 65536, 54061)  # D50, in 65536ths
    curve = b"curv" + struct.pack(">4xI", 0)  # no points: linear
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 156 + len(white), len(curve))
    body = tags + white + curve
    header = struct.pack(">I4x4s4s4s4s12x4s28x", 128 + len(body), b"\2\x10\0\0", b"mntr", b"GRAY", b"XYZ ", b"acsp")
    return header + struct.pack(">3i48x", 63190, 65536, 54061) + body


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode).save(file)
    image = read_image(file)
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8
    assert image.min() >= 250


def test_alpha_is_dropped(tmp_path):
    Image.fromarray(np.dstack([RGB, np.zeros((6, 9), np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def broken_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    (tmp_path / "text.png").write_text("I am no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    return {
        "text": (tmp_path / "text.png", "not an image"),
        "empty": (tmp_path / "empty.png", "not an image"),
        "cut": (tmp_path / "cut.png", "damaged"),
        "float": (tmp_path / "float.tif", "floating-point"),
        "missing": (tmp_path / "nowhere.png", "cannot be read"),
        "folder": (tmp_path, "cannot be read"),
    }


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "float", "missing", "folder"])
def test_unreadable_files_get_one_line(tmp_path, kind):
    path, reason = broken_files(tmp_path)[kind]
    with pytest.raises(UserError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith((f"{path}: ", f"{path} cannot be read: ")) and "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_refused(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for read in (read_picture, read_size):
        with pytest.raises(
            UserError, match=r"a\.png: 9 x 6 pixels are more than 5e-05 million; --max-megapixels allows"
        ):
            read(tmp_path / "a.png", max_pixels=50)
    # A file of few bytes with many pixels.
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.tif", compression="group4")
    assert (tmp_path / "bomb.tif").stat().st_size < 100_000
    with pytest.raises(UserError, match="9000 x 9000 pixels are more than 64 million"):
        read_image(tmp_path / "bomb.tif")


def test_limits_in_millions():
    assert [limit_from_millions("--limit", value) for value in (0.5, 64, 1e-9)] == [500_000, 64_000_000, 1]
    for none in (math.inf, 1e305):
        assert limit_from_millions("--limit", none) > 10**15
    for value in (0, -1, math.nan, -math.inf):
        with pytest.raises(UserError, match=f"--limit must be above 0, not {value}"):
            limit_from_millions("--limit", value)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_damaged_exif_is_ignored(tmp_path, name):
    """The picture is still rotated if the orientation can be read."""
    data = camera_exif(6)
    for damaged, size in [
        (data.replace(b"\0\2\0\5\0\0\0\3", b"\0\2\0\2\0\0\0\3"), (9, 6)),  # the type of the latitude becomes text
        (data.replace(b"MM\0*", b"MM\0!"), (6, 9)),
    ]:
        assert damaged != data
        Image.fromarray(RGB).save(tmp_path / name, exif=damaged)
        picture = read_picture(tmp_path / name)
        assert picture.exif is None and picture.rgb.shape == (*size, 3) and read_size(tmp_path / name) == size


def test_profiles_of_other_kinds_of_pictures_are_applied(tmp_path):
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.tif", icc_profile=b"no profile")
    picture = read_picture(tmp_path / "a.tif")
    assert picture.icc_profile is None and picture.rgb[0, 0, 0] > 200 > 60 > picture.rgb[0, 0, 1]
    # A profile for RGB, so it is wrong here.
    Image.new("L", (4, 3), 99).save(tmp_path / "b.png", icc_profile=grey.tobytes())
    picture = read_picture(tmp_path / "b.png")
    assert picture.icc_profile is None and (picture.rgb == 99).all()


def test_an_opaque_picture_has_no_alpha(tmp_path):
    Image.fromarray(np.dstack([RGB, np.full((6, 9), 255, np.uint8)])).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").alpha is None
    palette = Image.fromarray(RGB).quantize(4)
    palette.save(tmp_path / "b.png", transparency=0)
    assert set(np.unique(read_picture(tmp_path / "b.png").alpha)) == {0, 255}


MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    "jpeg": ["L", "RGB", "CMYK"],
    "webp": ["RGB", "RGBA"],
    "gif": ["L", "P", "RGB"],
    "bmp": ["1", "L", "P", "RGB"],
    "ppm": ["1", "L", "RGB"],
}
SIZES = [(9, 6), (1, 1), (1, 13), (13, 1)]
FILES = [(format, mode, size) for format, modes in MODES.items() for mode in modes for size in SIZES]


def test_ordinary_files_of_all_formats_and_modes(tmp_path):
    """120 files: all formats and modes, down to one pixel."""
    assert len(FILES) == 120
    for i, (format, mode, size) in enumerate(FILES):
        file = tmp_path / f"{i}.{format}"
        make(mode, size).save(file, format=format.upper())
        picture = read_picture(file)
        assert picture.rgb.shape == (size[1], size[0], 3) and picture.rgb.dtype == np.uint8
        assert read_size(file) == (size[1], size[0])
        # The grey is 200 in all modes, except for small losses.
        assert abs(int(np.median(picture.rgb)) - (255 if mode == "1" else 200)) <= 4, (format, mode, size)
        assert (picture.alpha is not None) == (mode in ("LA", "RGBA")), (format, mode)


def make(mode: str, size: tuple[int, int]) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 200 * 257, np.uint16))
    if mode == "1":
        return Image.new("1", size, 1)
    if mode in ("LA", "RGBA"):
        image = Image.new("RGB", size, (200, 200, 200)).convert(mode)
        image.putalpha(77)
        return image
    return Image.new("RGB", size, (200, 200, 200)).convert(mode)


def test_mutated_files_are_read_or_refused(tmp_path):
    """2,400 files. Any error is one line, and a picture that was read can be written with its EXIF."""
    rng = np.random.default_rng(3)
    file, folder = tmp_path / "mutated", tmp_path / "written"
    folder.mkdir()
    originals = []
    for format, mode in [
        ("png", "RGB"),
        ("png", "P"),
        ("tiff", "RGB"),
        ("jpeg", "RGB"),
        ("webp", "RGBA"),
        ("gif", "P"),
    ]:
        options = {"exif": camera_exif(6)} if format != "gif" else {}
        if format == "tiff":
            options["compression"] = "raw"
        make(mode, (9, 6)).save(file, format=format.upper(), icc_profile=PROFILE, **options)
        originals.append(file.read_bytes())
    refused = 0
    formats = list(SUFFIX_OF)
    for i in range(2400):
        data = bytearray(originals[i % len(originals)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        file.write_bytes(data)
        try:
            size, picture = read_size(file), read_picture(file)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
            continue
        assert picture.rgb.shape == (*size, 3)
        try:
            write_picture(folder / "a", picture, format=formats[i // len(originals) % len(formats)])
            assert os.listdir(folder) == ["a"]
            os.unlink(folder / "a")
        except UserError as error:
            assert "cannot be written" in str(error) and max(size) > 16383  # too wide for a WebP
            assert os.listdir(folder) == []
    assert 200 < refused < 2200
