"""PSNR and SSIM of luma, in float64: how close a restored image is to its original, pixel by pixel.

Both follow the convention of the field (BasicSR with `test_y_channel`): BT.601 luma in studio range, without cropping
the border.
"""

import numpy as np
from jaxtyping import Float, Shaped
from scipy.ndimage import correlate1d


def luma(image: Shaped[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """BT.601 Y in [16, 235], float64, unrounded. `image` is RGB: 8-bit, or float in [0, 1] (clipped to it).

    Raises:
        ValueError: the image has another shape or type.
    """
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"An RGB image must have the shape (h, w, 3), not {image.shape}.")
    if image.dtype == np.uint8:
        rgb = image / 255.0
    elif np.issubdtype(image.dtype, np.floating):
        rgb = np.clip(image.astype(np.float64), 0.0, 1.0)
    else:
        raise ValueError(f"An image must be 8-bit, or float in [0, 1], not {image.dtype}.")
    weights = np.array([65.481, 128.553, 24.966])
    return np.asarray(16.0 + rgb @ weights)


def psnr_y(a: Shaped[np.ndarray, "h w 3"], b: Shaped[np.ndarray, "h w 3"]) -> float:
    """Peak signal-to-noise ratio of the luma of two RGB images, in dB, for a peak of 255. Infinite for equal images.

    Raises:
        ValueError: the shapes differ, or an image is neither 8-bit nor float.
    """
    _check_pair(a, b)
    error = np.mean((luma(a) - luma(b)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim_y(a: Shaped[np.ndarray, "h w 3"], b: Shaped[np.ndarray, "h w 3"]) -> float:
    """Structural similarity of the luma of two RGB images (Wang et al., 2004). 1 for equal images.

    The window is Gaussian, 11 x 11 pixels, sigma 1.5. The mean is over all positions at which it is inside the image.

    Raises:
        ValueError: the shapes differ, an image is neither 8-bit nor float, or a side is shorter than the window.
    """
    _check_pair(a, b)
    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs at least 11 x 11 pixels; the image has {a.shape[0]} x {a.shape[1]}.")
    x, y = luma(a), luma(b)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(np.mean(similarity))


def _window_mean(x: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h-10 w-10"]:
    """The mean within the Gaussian window, at all positions at which it is inside the image."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    return np.asarray(correlate1d(correlate1d(x, window, axis=0), window, axis=1)[5:-5, 5:-5])


def _check_pair(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"The two images must have the same shape, not {a.shape} and {b.shape}.")
