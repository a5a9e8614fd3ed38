import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xpsr_jax.errors import UserError
from xpsr_jax.inference import image_io
from xpsr_jax.inference.image_io import check_writable, list_inputs, read_image, read_size, write_png

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.ppm"])
def test_lossless_files_come_back(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), RGB)
    assert read_size(tmp_path / name) == (6, 9)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_files_come_close(tmp_path, name):
    Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8)).save(tmp_path / name, quality=95)
    assert np.abs(np.int32(read_image(tmp_path / name)) - (200, 100, 50)).max() <= 4


def test_the_suffix_does_not_matter(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a"), RGB)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be rotated by 90 degrees clockwise
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(RGB, -1))
    assert read_size(tmp_path / "a.png") == (9, 6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey(tmp_path, suffix):
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}")[0, :, 0], [0, 0, 1, 128, 255])


def test_16_bit_colour(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.full((2, 2, 3), (0, 32768, 65535), np.uint16))  # BGR
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, 0], [255, 128, 0])


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
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match="larger than"):
        read_image(tmp_path / "a.png")


def test_inputs_are_listed_in_natural_order(tmp_path):
    for name in ("img10.png", "img2.JPG", "sub/img1.png", "notes.txt", ".hidden.png", ".cache/a.png", "out/img2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(RGB).save(tmp_path / name, format="PNG")
    names = [str(each.name) for each in list_inputs([tmp_path], exclude=tmp_path / "out")]
    assert names == ["img2.JPG", "img10.png", "sub/img1.png"]
    both = list_inputs([tmp_path / "img10.png", tmp_path], exclude=tmp_path / "out")  # a file named twice is one input
    assert [str(each.name) for each in both] == ["img10.png", "img2.JPG", "sub/img1.png"]


@pytest.mark.parametrize(("name", "reason"), [("nothing", "no image in this folder"), ("nowhere", "no such file")])
def test_there_must_be_something_to_do(tmp_path, name, reason):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=reason):
        list_inputs([tmp_path / name])
    with pytest.raises(UserError, match="no input"):
        list_inputs([])


def test_write_png(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_png(path, RGB)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert os.listdir(path.parent) == ["a.png"]
    umask = image_io._umask()
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", RGB)

    def full_disk(self, file, format):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_png(tmp_path / "a.png", RGB // 2)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def test_an_unwritable_folder_is_found_out_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / "file" / "sub")
    check_writable(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []
