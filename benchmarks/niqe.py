"""NIQE, a measure of how natural a picture looks, without a reference (Mittal, Soundararajan and Bovik, 2013).

A picture's luma is normalised by its local mean and deviation. Blocks of it, at two scales, are described by the shapes
of distributions: of the values, and of the products of neighbours. NIQE is the distance of their statistics from those
of good photographs. Lower is better.

`niqe_parameters.npz` holds these statistics. It is `niqe_pris_params.npz` of basicsr 1.4.2 (Apache-2.0).
"""

import functools
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.special import gamma

from xpsr_jax.evaluation.fidelity import luma

# Side of a block, in pixels.
BLOCK = 96
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def niqe(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """NIQE of an RGB picture. Raises ValueError if it has fewer than two blocks of 96 × 96 pixels."""
    rows, columns = (side // BLOCK for side in image.shape[:2])
    if rows * columns < 2:
        raise ValueError(f"NIQE needs at least two blocks of {BLOCK} x {BLOCK} pixels, not {image.shape[:2]}")
    picture = np.round(luma(image))[: rows * BLOCK, : columns * BLOCK]
    half = np.asarray(
        Image.fromarray(picture.astype(np.float32)).resize(
            (picture.shape[1] // 2, picture.shape[0] // 2), Image.Resampling.BICUBIC
        )
    )
    features = np.concatenate([_features(picture, BLOCK), _features(half.astype(np.float64), BLOCK // 2)], axis=1)
    features = features[np.isfinite(features).all(1)]
    mean, covariance, _ = _parameters()
    difference = mean - features.mean(0)
    pooled = (covariance + np.cov(features, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))


@functools.cache
def _parameters() -> tuple[Float[np.ndarray, "36"], Float[np.ndarray, "36 36"], Float[np.ndarray, "7 7"]]:
    """Mean and covariance of good photographs' features, and the window of local statistics."""
    with np.load(Path(__file__).with_name("niqe_parameters.npz")) as stored:
        return stored["mu_pris_param"].ravel(), stored["cov_pris_param"], stored["gaussian_window"]


def _features(picture: Float[np.ndarray, "h w"], block: int) -> Float[np.ndarray, "blocks 18"]:
    *_, window = _parameters()
    mean, square = (cv2.filter2D(x, -1, window, borderType=cv2.BORDER_REPLICATE) for x in (picture, picture**2))
    normalised = (picture - mean) / (np.sqrt(np.abs(square - mean**2)) + 1)
    height, width = normalised.shape
    blocks = normalised.reshape(height // block, block, width // block, block).swapaxes(1, 2).reshape(-1, block, block)
    return np.array([_of_block(each) for each in blocks])


def _of_block(block: Float[np.ndarray, "n n"]) -> list[float]:
    shape, left, right = _asymmetric_gaussian(block)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _asymmetric_gaussian(block * np.roll(block, shift, axis=(0, 1)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        features += [shape, mean, left, right]
    return features


def _asymmetric_gaussian(values: Float[np.ndarray, "n n"]) -> tuple[float, float, float]:
    """Shape, left scale and right scale of an asymmetric generalised Gaussian, by the method of moments."""
    left, right = (np.sqrt(np.mean(part**2)) for part in (values[values < 0], values[values > 0]))
    ratio = left / right
    moment = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    corrected = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = _SHAPES[np.argmin((_RATIOS - corrected) ** 2)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return float(shape), float(left * scale), float(right * scale)
