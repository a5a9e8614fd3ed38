"""Noise of the degradation (method §9). Both results are cut off to [0, 1]."""

import numpy as np
from jaxtyping import Float

from xpsr_jax.data.jpeg import to_uint8

LUMA = np.array([0.2989, 0.587, 0.114], np.float32)


def add_gaussian_noise(
    image: Float[np.ndarray, "h w 3"], sigma: float, *, gray: bool, rng: np.random.Generator
) -> Float[np.ndarray, "h w 3"]:
    """Adds normal noise of standard deviation `sigma`/255; `gray` noise is the same in all channels."""
    shape = (*image.shape[:2], 1) if gray else image.shape
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise *= np.float32(sigma / 255)
    return _add(image, noise)


def add_poisson_noise(
    image: Float[np.ndarray, "h w 3"], scale: float, *, gray: bool, rng: np.random.Generator
) -> Float[np.ndarray, "h w 3"]:
    """Adds `scale` times the Poisson noise of the image taken as counts.

    The image (for `gray` noise its luma) in 8 bits has n distinct values; full intensity is 2^ceil(log2 n) counts.
    """
    pixels = to_uint8(image @ LUMA[:, None] if gray else image)
    distinct = np.count_nonzero(np.bincount(pixels.ravel(), minlength=256))
    counts = 2.0 ** np.ceil(np.log2(distinct))
    expected = pixels * np.float32(counts / 255)
    noise = rng.poisson(expected).astype(np.float32)
    noise -= expected
    noise *= np.float32(scale / counts)
    return _add(image, noise)


def _add(image: np.ndarray, noise: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    return np.clip(image + noise, 0, 1)
