"""NIQE of benchmarks/niqe.py against basicsr's."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.niqe import niqe
from xpsr_jax.images.reading import read_image

PHOTO = Path(__file__).parents[1] / "vectors" / "photos" / "leuven.jpg"


def test_equal_to_basicsr():
    """6.5217 is from basicsr 1.4.2 (`calculate_niqe`, without a border). The reduction to half the size differs."""
    assert niqe(read_image(PHOTO)) == pytest.approx(6.5217, rel=6e-3)  # measured 4.9e-3; 2e-4 to 1e-3 on larger photos


def test_blur_and_noise_are_less_natural():
    photo = read_image(PHOTO)
    blurred = cv2.GaussianBlur(photo, (0, 0), 3)
    noise = np.random.default_rng(0).normal(0, 25, photo.shape)
    noisy = np.clip(photo + noise, 0, 255).astype(np.uint8)
    assert min(niqe(blurred), niqe(noisy)) > niqe(photo) + 4  # measured 4.8 and 7.7


def test_a_small_picture_is_refused():
    with pytest.raises(ValueError, match="at least two blocks"):
        niqe(read_image(PHOTO)[:180, :180])
