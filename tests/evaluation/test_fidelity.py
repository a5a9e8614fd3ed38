import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from xpsr_jax.evaluation.fidelity import luma, psnr_y, ssim_y


def noisy_pair(seed=3, shape=(29, 40, 3)):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, shape, dtype=np.uint8)
    return a, np.clip(a + rng.normal(scale=20, size=shape), 0, 255).astype(np.uint8)


def test_luma_of_known_colours():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(luma(colours)[0], [16, 235, 81.481, 144.553, 40.966], rtol=1e-14)


def test_psnr_of_a_known_error():
    a = np.zeros((4, 5, 3), np.uint8)
    b = a.copy()
    b[..., 1] = 255  # luma differs by 128.553 everywhere
    assert psnr_y(a, b) == pytest.approx(20 * math.log10(255 / 128.553), rel=1e-14)
    b[:, 1:] = 0  # in one of five columns
    assert psnr_y(a, b) == pytest.approx(20 * math.log10(255 / 128.553) + 10 * math.log10(5), rel=1e-14)


def test_equal_images():
    a, _ = noisy_pair()
    assert psnr_y(a, a) == math.inf
    assert ssim_y(a, a) == 1.0


def test_ssim_of_flat_images():
    # Without variance, only the means matter: (2xy + c1) / (x² + y² + c1), for luma 16 and 235.
    a, b = np.zeros((11, 12, 3), np.uint8), np.full((11, 12, 3), 255, np.uint8)
    c1 = (0.01 * 255) ** 2
    # Rounding of the flat images' variances: measured relative error 3e-12.
    assert ssim_y(a, b) == pytest.approx((2 * 16 * 235 + c1) / (16**2 + 235**2 + c1), rel=1e-10)


def test_ssim_equals_scikit_image():
    a, b = noisy_pair()
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert ssim_y(a, b) == pytest.approx(structural_similarity(luma(a), luma(b), **options), rel=1e-12)


def test_floats_equal_their_8_bit_image_and_are_clipped():
    a, b = noisy_pair()
    assert psnr_y(a.astype(np.float32) / 255, b) == pytest.approx(psnr_y(a, b), rel=1e-6)  # float32 has 7 digits
    assert psnr_y(a / 255 + (a == 255), b) == pytest.approx(psnr_y(a, b), rel=1e-12)


def test_invalid_images_are_refused(unchecked):
    a, _ = noisy_pair()
    for metric in (psnr_y, ssim_y):
        with pytest.raises(ValueError, match=r"\(29, 40, 3\) and \(28, 40, 3\)"):
            metric(a, a[1:])
        with pytest.raises(ValueError, match="not int64"):
            metric(a.astype(np.int64), a.astype(np.int64))
        with pytest.raises(ValueError, match=r"not \(29, 40\)"):
            metric(a[..., 0], a[..., 0])
    with pytest.raises(ValueError, match="10 x 40"):
        ssim_y(a[:10], a[:10])
