import os
import stat

import numpy as np
import pytest
from PIL import Image

from tests.images.making import PROFILE, camera_exif
from xpsr_jax.errors import UserError
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import read_image, read_picture
from xpsr_jax.images.writing import SUFFIX_OF, write_picture, write_png

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


ALPHA = np.random.default_rng(2).integers(0, 256, (6, 9), np.uint8)


def picture_with_everything():
    return Picture(RGB, ALPHA, PROFILE, camera_exif())


def tags(picture):
    exif = Image.Exif()
    exif.load(picture.exif)
    return [exif[0x010F], dict(exif.get_ifd(0x8769)), dict(exif.get_ifd(0x8825))]


@pytest.mark.parametrize("format", ["png", "webp", "tiff", "jpeg"])
def test_files_keep_transparency_profile_and_exif(tmp_path, format):
    file = tmp_path / f"a{SUFFIX_OF[format]}"
    write_picture(file, picture_with_everything(), format=format, quality=100)
    back = read_picture(file)
    if format in ("png", "tiff"):
        np.testing.assert_array_equal(back.rgb, RGB)
    if format == "jpeg":
        assert back.alpha is None
    else:
        np.testing.assert_array_equal(back.alpha, ALPHA)
    assert back.icc_profile == PROFILE
    assert tags(back) == tags(picture_with_everything())
    write_picture(tmp_path / "again.png", back)
    assert tags(read_picture(tmp_path / "again.png")) == tags(picture_with_everything())


def test_write_png(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_png(path, RGB)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert os.listdir(path.parent) == ["a.png"]
    (tmp_path / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", RGB)

    def full_disk(self, file, format, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_png(tmp_path / "a.png", RGB // 2)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
