"""Measured captions describe the degradation of a real photograph."""

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.models.golden import VECTORS
from xpsr_jax.caption.measured import describe_quality, measure_quality, quality_in_words
from xpsr_jax.data.jpeg import quantisation_scale
from xpsr_jax.images.reading import read_image

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photo():
    """A sharp photograph without compression."""
    return read_image(VECTORS / "photos" / "fruits.png")


def noisy(image, deviation, *, gray=False):
    noise = RNG.normal(0, deviation, image.shape[:2] + (() if not gray else (1,)) + (() if gray else (3,)))
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def compressed(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def test_blur(photo):
    measured = [measure_quality(cv2.GaussianBlur(photo, (0, 0), s)).appearance.blur for s in (0.01, 0.5, 0.8, 1.2, 2)]
    assert measured == sorted(measured)
    assert measured[0] < 0.5 and measured[-1] > 1.5  # measured 0.00 and 1.96
    # Noise is not mistaken for sharpness.
    again = measure_quality(noisy(cv2.GaussianBlur(photo, (0, 0), 1.2), 4)).appearance.blur
    assert again == pytest.approx(measured[3], rel=0.3)  # measured 0.22


def test_noise(photo):
    measured = [measure_quality(noisy(photo, deviation)).appearance for deviation in (1, 4, 10, 20)]
    levels = [seen.noise for seen in measured]
    assert levels == sorted(levels) and levels[3] > 3 * levels[0]
    assert not measured[2].gray_noise
    assert measure_quality(noisy(photo, 10, gray=True)).appearance.gray_noise


@pytest.mark.parametrize("quality", [30, 44, 60, 76])
def test_compression(photo, quality):
    found = measure_quality(compressed(photo, quality)).appearance.compression
    assert found == pytest.approx(quantisation_scale(quality), abs=0.2)


def test_no_compression(photo):
    assert measure_quality(photo).appearance.compression == 0
    # Blocks that do not begin at multiples of 8 are not found, as docs/understand/captions.md says.
    assert measure_quality(compressed(photo, 30)[3:, 5:]).appearance.compression == 0


def test_light_and_colour(photo):
    plain = measure_quality(photo)
    assert measure_quality(photo // 3).brightness < plain.brightness - 15
    assert measure_quality(photo // 2 + 64).contrast < plain.contrast
    gray = np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
    assert measure_quality(gray).saturation < 0.1 < plain.saturation
    assert "no colors" in describe_quality(gray) and "dark lighting" in describe_quality(photo // 4)


def test_words(photo):
    assert describe_quality(photo) == (
        "The image is sharp and clear, with little noise and no compression artifacts. "
        "It has natural colors, dim lighting and normal contrast."
    )
    bad = noisy(cv2.GaussianBlur(photo, (0, 0), 2), 5)
    assert describe_quality(bad).startswith("The image is heavily blurry, with moderate colored noise")
    assert quality_in_words(measure_quality(bad)) == describe_quality(bad)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (90, 90, 90), (0, 255, 7), (35, 220, 128)])
def test_a_flat_picture_has_no_noise(color):
    """The noise is 0 and not NaN, although rounding can make variances negative."""
    for shape in ((1, 1), (8, 8), (300, 700)):
        quality = measure_quality(np.full((*shape, 3), color, np.uint8))
        assert quality.appearance.noise == 0 and quality.contrast < 1e-3
        assert "little noise" in quality_in_words(quality)


def test_any_size(photo):
    """From one pixel to images of which only patches are measured."""
    for height, width in ((1, 1), (3, 40), (17, 9), (1, 700)):
        flat = np.full((height, width, 3), 90, np.uint8)
        assert describe_quality(flat).startswith("The image is sharp and clear")
    large = np.tile(photo, (8, 8, 1))
    assert measure_quality(large).appearance.compression == 0
    assert describe_quality(large).split(".")[1] == describe_quality(photo).split(".")[1]


@pytest.mark.usefixtures("unchecked")
def test_only_8_bit_rgb_images_are_accepted(photo):
    for wrong in (photo / 255, photo[..., 0], np.zeros((0, 4, 3), np.uint8), np.asarray(Image.new("RGBA", (9, 9)))):
        with pytest.raises(ValueError, match="expected an 8-bit RGB image"):
            measure_quality(wrong)
