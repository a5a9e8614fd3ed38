"""Raw files of cameras are refused. If the first picture of a TIFF is reduced, the full-size picture is read."""

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from tests.images.making import stored
from xpsr_jax.errors import UserError
from xpsr_jax.images.reading import decode_picture, read_picture, read_size

RGB = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
REDUCED, DNG_VERSION, FILTERS, FURTHER = {254: 1}, {50706: b"\1\4\0\0"}, {33422: b"\0\1\1\2"}, {330: 8}


def write(file, *pictures: tuple[np.ndarray, dict]):
    with AppendingTiffWriter(file, True) as writer:
        for pixels, tags in pictures:
            Image.fromarray(pixels).save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    return file


@pytest.mark.parametrize("tags", [REDUCED | DNG_VERSION, DNG_VERSION, REDUCED | FURTHER, FILTERS])
def test_raw_files_are_refused(tmp_path, tags):
    file = write(tmp_path / "photo.tif", (RGB, tags))
    for read in (read_size, read_picture):
        with pytest.raises(UserError, match=r"photo\.tif: a camera's raw file; develop it first"):
            read(file)


def test_raw_files_by_suffix_and_first_bytes(tmp_path):
    plain = write(tmp_path / "photo.NEF", (RGB, {}))
    with pytest.raises(UserError, match="raw file"):
        read_picture(plain)
    for beginning in (b"FUJIFILMCCD-RAW ", b"IIRO\x08\0\0\0", b"IIU\0\x18\0\0\0", b"II*\0\x10\0\0\0CR\2\0", b"FOVb"):
        with pytest.raises(UserError, match="raw file"):
            decode_picture(beginning + bytes(99), "it")
    assert decode_picture(stored("PNG"), "misnamed.raw").rgb.shape == (37, 53, 3)


def test_the_full_size_picture_is_read_and_not_the_reduced_one(tmp_path):
    file = write(tmp_path / "a.tif", (RGB[::4, ::4], REDUCED), (RGB, {}))
    np.testing.assert_array_equal(read_picture(file).rgb, RGB)
    assert read_size(file) == (12, 16)
    np.testing.assert_array_equal(read_picture(write(tmp_path / "b.tif", (RGB, REDUCED))).rgb, RGB)  # the only picture
    pages = write(tmp_path / "c.tif", (RGB, {}), (RGB // 2, {}))
    np.testing.assert_array_equal(read_picture(pages).rgb, RGB)
