"""Noise of the degradation (method §9). All results are clipped to [0, 1]."""

import functools

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.special import gammaln, xlogy

from xpsr_jax.data.rounding import round_to_uint8

LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
_CELLS = 1024


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
    """Adds Poisson noise, multiplied by `scale`. The noise is that of the image's pixels taken as photon counts.

    Full intensity is 2^ceil(log2 n) counts, where n is the number of distinct 8-bit values in the image (for `gray`
    noise: in its luma).
    """
    pixels = round_to_uint8(image @ LUMA[:, None] if gray else image)
    distinct = np.count_nonzero(np.bincount(pixels.ravel(), minlength=256))
    counts = int(2.0 ** np.ceil(np.log2(distinct)))
    noise = _poisson(pixels, counts, rng).astype(np.float32)
    noise -= pixels * np.float32(counts / 255)
    noise *= np.float32(scale / counts)
    return _add(image, noise)


def _add(image: np.ndarray, noise: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    noise = image + noise
    return np.clip(noise, 0, 1, out=noise)


def _poisson(pixels: UInt8[np.ndarray, "..."], counts: int, rng: np.random.Generator) -> Int[np.ndarray, "..."]:
    """Poisson samples with mean pixels / 255 * counts, by inversion: exact to the 24 bits of a uniform float32.

    There are only 256 different means. Numpy treats each sample's mean separately and takes four times as long.
    """
    cumulative, guide = _poisson_tables(counts)
    level = pixels.ravel().astype(np.intp)
    uniform = rng.random(level.shape, dtype=np.float32)
    sample = guide.take(level * _CELLS + (uniform * np.float32(_CELLS)).astype(np.intp)).astype(np.intp)
    # The guide gives the smallest sample of each cell of uniforms. Few samples need to move further.
    level *= cumulative.shape[1]
    behind = np.flatnonzero(uniform >= cumulative.take(level + sample))
    while behind.size:
        sample[behind] += 1
        behind = behind[uniform[behind] >= cumulative.take(level[behind] + sample[behind])]
    return sample.reshape(pixels.shape)


@functools.cache
def _poisson_tables(counts: int) -> tuple[Float[np.ndarray, "256 n"], Int[np.ndarray, "256 cells"]]:
    """For each level: its cumulative probabilities, and the smallest sample above each multiple of 1/cells."""
    mean = np.arange(256)[:, None] * (counts / 255)
    values = np.arange(int(counts + 10 * np.sqrt(counts) + 20))
    cumulative = np.exp(xlogy(values, mean) - mean - gammaln(values + 1)).cumsum(axis=1).astype(np.float32)
    cumulative[:, -1] = np.inf
    cells = np.arange(_CELLS, dtype=np.float32) / np.float32(_CELLS)
    guide = np.stack([np.searchsorted(row, cells, side="right") for row in cumulative])
    return cumulative, guide.astype(np.int16)
