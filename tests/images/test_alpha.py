"""The colours of invisible pixels have no effect."""

import numpy as np
from PIL import Image

from xpsr_jax.images.alpha import fill_invisible, on_white
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import read_picture


def test_invisible_pixels_have_the_colours_of_the_nearest_visible_ones():
    rgb = np.random.default_rng(0).integers(0, 256, (1, 7, 3), np.uint8)
    alpha = np.array([[0, 0, 9, 0, 0, 255, 0]], np.uint8)
    filled = fill_invisible(rgb, alpha)
    np.testing.assert_array_equal(filled, rgb[:, [2, 2, 2, 2, 5, 5, 5]])
    for all_or_none in (0, 255):
        assert fill_invisible(rgb, np.full((1, 7), all_or_none, np.uint8)) is rgb


def test_pictures_that_look_equal_are_read_as_equal(tmp_path):
    y, x = np.mgrid[:32, :32]
    alpha = np.where((y - 16) ** 2 + (x - 16) ** 2 < 100, 255, 0).astype(np.uint8)
    pictures = []
    for name, hidden in (("black.png", 0), ("red.webp", (255, 0, 0)), ("red.tif", (255, 0, 0))):
        rgb = np.where(alpha[..., None] > 0, (230, 60, 40), hidden).astype(np.uint8)
        Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
        pictures.append(read_picture(tmp_path / name))
    assert all((picture.rgb == (230, 60, 40)).all() for picture in pictures)
    assert all((picture.alpha == alpha).all() for picture in pictures)


def test_on_white():
    rgb = np.full((1, 4, 3), (200, 0, 255), np.uint8)
    alpha = np.array([[0, 128, 255, 1]], np.uint8)
    assert on_white(Picture(rgb, alpha))[0].tolist() == [
        [255, 255, 255],
        [227, 127, 255],
        [200, 0, 255],
        [255, 254, 255],
    ]
    assert on_white(Picture(rgb)) is rgb
