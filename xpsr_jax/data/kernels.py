"""Blur kernels of the degradation, filtering with them, and unsharp masking (method §9).

Kernels are computed in float64 and applied in float32 to `h w c` images, with reflected borders (reflect-101: the edge
pixel is not repeated). The released code pads kernels with zeros to 21 x 21. Without padding the result is the same
and faster.
"""

import functools

import cv2
import numpy as np
from jaxtyping import Float
from scipy.special import j1

from xpsr_jax.data.config import GaussianShape

SHARPENING_WINDOW = 51  # pixels; OpenCV gives this window a Gaussian of sigma 8.0

# The smallest taps of a kernel are left out, up to this fraction of its total weight.
_NEGLIGIBLE = 1e-7
# OpenCV sums directly over kernels with up to _OPENCV_DIRECT taps and uses the Fourier domain for larger ones. Direct
# summation is faster for fewer than _FOURIER_FROM non-zero taps (measured at 512 x 512).
_OPENCV_DIRECT, _FOURIER_FROM = 129, 330


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
    normalised: np.ndarray = kernel / kernel.sum()
    return normalised


def sinc_kernel(*, size: int, cutoff: float) -> Float[np.ndarray, "size size"]:
    """A circular low-pass filter: the two-dimensional sinc, which causes ringing (method §9). Sums to 1.

    Args:
      size: odd width in pixels.
      cutoff: in radians per pixel; pi passes all frequencies along the axes.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"A sinc kernel needs an odd size, got {size}.")
    offset = np.arange(size) - size // 2
    radius = np.hypot(*np.meshgrid(offset, offset))
    radius[size // 2, size // 2] = 1  # the centre is the limit below
    kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    normalised: np.ndarray = kernel / kernel.sum()
    return normalised


def noise_gain(kernel: Float[np.ndarray, "k k"]) -> float:
    """The variance of white noise with variance 1 after filtering: the sum of the kernel's squares."""
    return float(np.square(kernel).sum())


def filter_image(image: Float[np.ndarray, "h w c"], kernel: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "h w c"]:
    """Correlates every channel of a float32 image with `kernel`. Borders are reflected (torch's "reflect" padding)."""
    significant = _without_negligible(kernel)
    centre, margin = len(kernel) // 2, (len(kernel) - len(significant)) // 2
    kernel, centre = kernel[margin : len(kernel) - margin, margin : len(kernel) - margin], centre - margin
    column, row = kernel[:, centre], kernel[centre] / kernel[centre, centre]
    if np.allclose(np.outer(column, row), kernel, rtol=0, atol=1e-9):  # separable, and then several times faster
        parts = row.astype(np.float32), column.astype(np.float32)
        return cv2.sepFilter2D(image, -1, *parts, borderType=cv2.BORDER_REFLECT_101)
    kernel = significant.astype(np.float32)
    if kernel.size > _OPENCV_DIRECT and np.count_nonzero(kernel) < _FOURIER_FROM:
        return _filter_in_strips(image, kernel)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def _without_negligible(kernel: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "n n"]:
    """The kernel without its smallest taps, whose total weight float32 cannot resolve, and without empty edges."""
    weights = np.sort(np.abs(kernel), axis=None)
    total = np.cumsum(weights)
    kernel = np.where(np.abs(kernel) < weights[np.searchsorted(total, _NEGLIGIBLE * total[-1])], 0, kernel)
    used = np.flatnonzero(kernel.any(axis=0) | kernel.any(axis=1))
    margin = min(used[0], len(kernel) - 1 - used[-1])
    return kernel[margin : len(kernel) - margin, margin : len(kernel) - margin]


def _filter_in_strips(
    image: Float[np.ndarray, "h w c"], kernel: Float[np.ndarray, "k k"]
) -> Float[np.ndarray, "h w c"]:
    """Filters with a few rows of the kernel at a time, so that OpenCV sums directly over their taps.

    For larger kernels it uses the Fourier domain, which is slower at these sizes.
    """
    size, (height, width) = len(kernel), image.shape[:2]
    centre, rows = size // 2, _OPENCV_DIRECT // size
    padded = cv2.copyMakeBorder(image, centre, centre, centre, centre, cv2.BORDER_REFLECT_101)
    total = None
    for first in range(0, size, rows):
        strip = kernel[first : first + rows]
        seen = padded[first : first + height + len(strip) - 1]
        part = cv2.filter2D(seen, -1, strip, anchor=(centre, 0), borderType=cv2.BORDER_CONSTANT)
        part = part[:height, centre : centre + width]
        total = part if total is None else cv2.add(total, part, total)
    assert total is not None
    return total


def sharpen(
    image: Float[np.ndarray, "h w c"], *, weight: float = 0.5, threshold: float = 10.0
) -> Float[np.ndarray, "h w c"]:
    """Unsharp masking of a float32 image in [0, 1]; the result is in [0, 1] too (method §9).

    Detail is amplified by `weight` only where it exceeds `threshold` (in 255ths). The mask of these pixels is blurred,
    so that its edges are not visible.
    """
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    detail = planes - _blur_widely(planes)
    mask = _blur_widely((np.abs(detail) > np.float32(threshold / 255)).astype(np.float32))
    # From here on in place: planes + mask * (clip(planes + weight * detail) - planes).
    detail *= np.float32(weight)
    detail += planes
    np.clip(detail, 0, 1, out=detail)
    detail -= planes
    detail *= mask
    detail += planes
    sharp: np.ndarray = cv2.merge(detail) if len(detail) > 1 else detail.transpose(1, 2, 0)
    return sharp


_BLOCK = 32  # pixels


@functools.cache
def _band() -> Float[np.ndarray, "n block"]:
    """A banded matrix. Each column is the sharpening window's Gaussian, one row further down than the previous one."""
    band = np.zeros((_BLOCK + SHARPENING_WINDOW - 1, _BLOCK), np.float32)
    for i in range(_BLOCK):
        band[i : i + SHARPENING_WINDOW, i] = cv2.getGaussianKernel(SHARPENING_WINDOW, 0)[:, 0]
    return band


def _blur_widely(planes: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "c h w"]:
    """Blurs with the sharpening window's Gaussian, with reflected borders.

    Computes products with banded matrices, block by block. At this width that is 1.7 times as fast as OpenCV's
    GaussianBlur.
    """
    margin, band = SHARPENING_WINDOW // 2, _band()
    height, width = planes.shape[1:]
    across, down = np.empty_like(planes), np.empty_like(planes)
    padded = cv2.copyMakeBorder(planes.reshape(-1, width), 0, 0, margin, margin, cv2.BORDER_REFLECT_101)
    rows = across.reshape(-1, width)
    for start in range(0, width, _BLOCK):
        n = min(_BLOCK, width - start)
        np.matmul(padded[:, start : start + n + 2 * margin], band[: n + 2 * margin, :n], out=rows[:, start : start + n])
    for source, target in zip(across, down, strict=True):
        padded = cv2.copyMakeBorder(source, margin, margin, 0, 0, cv2.BORDER_REFLECT_101)
        for start in range(0, height, _BLOCK):
            n = min(_BLOCK, height - start)
            np.matmul(
                band[: n + 2 * margin, :n].T, padded[start : start + n + 2 * margin], out=target[start : start + n]
            )
    return down
