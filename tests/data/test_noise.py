"""Noise has the documented distribution. All bounds are at least 4 standard errors, and seeds are fixed."""

import numpy as np
import pytest
from scipy.stats import chi2, poisson

from xpsr_jax.data.noise import _poisson, add_gaussian_noise, add_poisson_noise


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_gaussian_noise(rng):
    image = np.full((200, 200, 3), 0.5, np.float32)
    noise = add_gaussian_noise(image, 20.0, gray=False, rng=rng) - image
    assert noise.std() * 255 == pytest.approx(20.0, abs=0.17)  # standard error 0.041
    assert noise.mean() * 255 == pytest.approx(0, abs=0.24)  # standard error 0.058
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02  # standard error 0.005


def test_gray_gaussian_noise_is_the_same_in_all_channels(rng):
    image = np.full((32, 32, 3), 0.5, np.float32)
    noise = add_gaussian_noise(image, 20.0, gray=True, rng=rng) - image
    np.testing.assert_array_equal(noise[..., :1].repeat(3, -1), noise)


def _ramp():
    """An image with all 256 levels, so that full intensity is 256 counts. Below the ramp all pixels are 127 / 255."""
    image = np.full((256, 256, 3), 127 / 255, np.float32)
    image[:4] = (np.arange(256, dtype=np.float32) / 255)[:, None]
    return image


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_of_256_levels(rng, gray):
    image = _ramp()
    noise = (add_poisson_noise(image, 2.0, gray=gray, rng=rng) - image)[4:]
    samples = noise[..., 0] if gray else noise
    expected = 2.0 * np.sqrt(127 / 255 / 256)
    error = expected / np.sqrt(2 * samples.size)
    assert samples.std() == pytest.approx(expected, abs=4 * error)
    assert samples.mean() == pytest.approx(0, abs=4 * expected / np.sqrt(samples.size))
    assert gray == np.array_equal(noise[..., 0], noise[..., 1])


@pytest.mark.parametrize("counts", [1, 8, 256])
def test_poisson_samples_are_poisson_distributed(rng, counts):
    """Pearson's chi-squared test for several levels, against the exact distribution."""
    for level in (1, 3, 40, 128, 255):
        samples = _poisson(np.full(40_000, level, np.uint8), counts, rng)
        mean = level / 255 * counts
        frequencies = np.bincount(samples)
        expected = len(samples) * poisson.pmf(np.arange(len(frequencies)), mean)
        common = expected >= 5
        observed = np.append(frequencies[common], frequencies[~common].sum())
        expected = np.append(expected[common], len(samples) - expected[common].sum())
        statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-9))[expected > 1e-3].sum()
        assert chi2.sf(statistic, max(1, (expected > 1e-3).sum() - 1)) > 1e-4
    assert not _poisson(np.zeros(100, np.uint8), counts, rng).any()


def test_poisson_noise_counts_distinct_levels(rng):
    """With five levels, full intensity is 8 counts, and the noise has steps of scale / 8."""
    levels = np.array([0.2, 0.4, 0.5, 0.6, 0.7], np.float32).round(2)
    image = np.repeat(rng.choice(levels, (64, 64, 1)), 3, axis=2)
    noise = (add_poisson_noise(image, 0.5, gray=False, rng=rng) - image)[(image == levels[2])]
    steps = noise / 0.5 * 8 + 128 / 255 * 8  # 0.5 is 128 in 8 bits (half to even)
    inside = steps[np.abs(noise) < 0.49]
    np.testing.assert_allclose(inside, np.rint(inside), atol=1e-5)
    assert len(np.unique(np.rint(inside))) > 8


def test_poisson_noise_is_added_to_the_unrounded_image(rng):
    image = _ramp()
    image[4:] += np.float32(0.3 / 255)
    same = np.random.default_rng(5)
    a = add_poisson_noise(image, 0.1, gray=False, rng=same)[4:]
    b = add_poisson_noise(_ramp(), 0.1, gray=False, rng=np.random.default_rng(5))[4:]
    np.testing.assert_allclose(a - b, 0.3 / 255, atol=1e-6)  # measured 6e-8


def test_black_stays_black(rng):
    black = np.zeros((16, 16, 3), np.float32)
    np.testing.assert_array_equal(add_poisson_noise(black, 3.0, gray=False, rng=rng), black)


@pytest.mark.parametrize("add", [add_gaussian_noise, add_poisson_noise])
def test_results_are_clipped(rng, add, photo):
    noisy = add(photo, 30.0, gray=False, rng=rng)
    assert (noisy.min(), noisy.max()) == (0, 1)
    assert noisy.dtype == np.float32
