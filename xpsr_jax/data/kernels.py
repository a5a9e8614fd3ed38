"""Blur kernels of the degradation, filtering with them, and unsharp masking (method §9).

Kernels are computed in float64 and applied in float32 to `h w c` images, with reflected borders (reflect-101: the edge
pixel is not repeated). The released code pads kernels with zeros to 21 x 21; the result without is the same, and
faster.
"""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float
from scipy.special import j1

GaussianShape = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]

SHARPENING_WINDOW = 51  # pixels; OpenCV gives this window a Gaussian of sigma 8.0


def gaussian_kernel(
    shape: GaussianShape, *, size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0
) -> Float[np.ndarray, "size size"]:
    """A Gaussian-like kernel that sums to 1 (method §9).

    With q = g^T Sigma^-1 g on the integer grid g centred at 0 and Sigma = R diag(sigma_x^2, sigma_y^2) R^T:
    `iso` and `aniso` are exp(-q/2), `generalized_*` exp(-q^beta/2), `plateau_*` 1/(q^beta + 1).

    Args:
      size: odd width in pixels.
      sigma_x, sigma_y: standard deviations in pixels along the rotated axes. Equal for the `iso` shapes.
      angle: rotation in radians.
      beta: exponent of the generalized and plateau shapes.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"A blur kernel needs an odd size, got {size}.")
    offset = np.arange(size) - size // 2
    x, y = np.meshgrid(offset, offset)
    cos, sin = np.cos(angle), np.sin(angle)
    q = ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2
    if shape.startswith("generalized"):
        kernel = np.exp(-(q**beta) / 2)
    elif shape.startswith("plateau"):
        kernel = 1 / (q**beta + 1)
    elif shape in ("iso", "aniso"):
        kernel = np.exp(-q / 2)
    else:
        raise ValueError(f"Unknown kernel shape {shape!r}.")
    return kernel / kernel.sum()


def sinc_kernel(*, size: int, cutoff: float) -> Float[np.ndarray, "size size"]:
    """A circular low-pass filter: the two-dimensional sinc, which rings (method §9). Sums to 1.

    Args:
      size: odd width in pixels.
      cutoff: in radians per pixel; pi passes everything along the axes.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"A sinc kernel needs an odd size, got {size}.")
    offset = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(offset, offset))
    radius[size // 2, size // 2] = 1  # the centre is the limit below
    kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return kernel / kernel.sum()


def noise_gain(kernel: Float[np.ndarray, "k k"]) -> float:
    """The variance that white noise of variance 1 keeps under `kernel`: the sum of its squares."""
    return float(np.square(kernel).sum())


def filter_image(image: Float[np.ndarray, "h w c"], kernel: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "h w c"]:
    """Correlates every channel of a float32 image with `kernel`, borders reflected (torch's "reflect" padding)."""
    centre = kernel.shape[0] // 2
    column, row = kernel[:, centre], kernel[centre] / kernel[centre, centre]
    if np.allclose(np.outer(column, row), kernel, rtol=0, atol=1e-9):  # an isotropic Gaussian: several times faster so
        parts = row.astype(np.float32), column.astype(np.float32)
        return cv2.sepFilter2D(image, -1, *parts, borderType=cv2.BORDER_REFLECT_101)
    return cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101)


def sharpen(
    image: Float[np.ndarray, "h w c"], *, weight: float = 0.5, threshold: float = 10.0
) -> Float[np.ndarray, "h w c"]:
    """Unsharp masking of a float32 image in [0, 1]; the result is in [0, 1] too (method §9).

    Detail is amplified by `weight` only where it exceeds `threshold` (of 255); that mask is blurred so that no seam
    shows.
    """

    def blur(x):
        window = (SHARPENING_WINDOW, SHARPENING_WINDOW)
        return cv2.GaussianBlur(x, window, 0, borderType=cv2.BORDER_REFLECT_101)

    detail = image - blur(image)
    mask = blur((np.abs(detail) * 255 > threshold).astype(np.float32))
    sharp = np.clip(image + np.float32(weight) * detail, 0, 1)
    return image + mask * (sharp - image)
