"""Colour fix: gives the restored image the colours of the LR image (method §8). Images are float in [0, 1]."""

import functools
import itertools
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from xpsr_jax.inference.tiling import plan_pieces

ColorFix = Literal["adain", "wavelet", "none"]

_WAVELET_RADII = (1, 2, 4, 8, 16)
# Large pictures are processed in square pieces with this side, in pixels.
_PIECE = 1024


def fix_color(
    target: Float[Array, "b h w 3"], source: Float[Array, "b h2 w2 3"], method: ColorFix
) -> Float[Array, "b h w 3"]:
    """Gives `target` the colours of `source`. The result may leave [0, 1]. "wavelet" needs two images of equal size."""
    if method == "adain":
        return adain(target, source)
    if method == "wavelet":
        return wavelet(target, source)
    if method == "none":
        return target
    raise ValueError(f'colour fix "{method}" is unknown: use "adain", "wavelet" or "none"')


def adain(target: Float[Array, "b h w 3"], source: Float[Array, "b h2 w2 3"]) -> Float[Array, "b h w 3"]:
    """Gives each channel of `target` the mean and the (unbiased) standard deviation of that channel in `source`.

    The result is not clipped. The sizes may differ.
    """
    target_mean, target_std = _mean_and_std(target)
    source_mean, source_std = _mean_and_std(source)
    return (target - target_mean) / target_std * source_std + source_mean


def wavelet(target: Float[Array, "b h w 3"], source: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Combines the detail of `target` with the low frequencies of `source`. The result is not clipped."""
    return target - low_frequencies(target) + low_frequencies(source)


def low_frequencies(image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Applies five à-trous blurs [1 2 1] / 4 with radius 1, 2, 4, 8, 16, one after the other. Edges are replicated."""
    for radius in _WAVELET_RADII:
        image = _blur(_blur(image, radius, axis=1), radius, axis=2)
    return image


def truncate_to_uint8(image: Float[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Clips x to [0, 1] and truncates 255x, as torchvision's ToPILImage does after the released code's colour fix."""
    return (jnp.clip(image, 0, 1) * 255).astype(jnp.uint8)


def keep_grey(
    restored: UInt8[np.ndarray, "h2 w2 3"], image: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Makes the restored picture grey if `image` is grey (R = G = B everywhere): its luma goes into all channels.

    If `image` has colours, returns `restored` unchanged.
    """
    if not (np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2])):
        return restored
    return np.repeat(cv2.cvtColor(restored, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def fix_large_color(
    target: UInt8[np.ndarray, "h w 3"], source: UInt8[np.ndarray, "h w 3"], method: ColorFix
) -> UInt8[np.ndarray, "h w 3"]:
    """Computes `truncate_to_uint8(fix_color(target, source))` for 8-bit pictures.

    It never converts a whole picture to float32.
    """
    if method == "none":
        return target
    result = np.empty_like(target)
    if method == "adain":
        for channel in range(3):
            result[..., channel] = _adain_table(target[..., channel], source[..., channel])[target[..., channel]]
        return result
    rows, columns = (plan_pieces(side, size=_PIECE, border=sum(_WAVELET_RADII)) for side in target.shape[:2])
    for y, x in itertools.product(rows, columns):
        seen = slice(y.start, y.start + _PIECE), slice(x.start, x.start + _PIECE)
        piece = np.asarray(_fixed_piece(target[seen], source[seen], method))
        kept = piece[y.begin - y.start : y.end - y.start, x.begin - x.start : x.end - x.start]
        result[y.begin : y.end, x.begin : x.end] = kept
    return result


@functools.partial(jax.jit, static_argnums=2)
def _fixed_piece(
    target: UInt8[Array, "h w 3"], source: UInt8[Array, "h w 3"], method: ColorFix
) -> UInt8[Array, "h w 3"]:
    target, source = (image[None].astype(jnp.float32) / 255 for image in (target, source))
    return truncate_to_uint8(fix_color(target, source, method))[0]


def _adain_table(target: UInt8[np.ndarray, "h w"], source: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "256"]:
    """The value that `adain` gives to each of the 256 values of a channel."""
    levels = np.arange(256) / 255

    def mean_and_std(channel: np.ndarray) -> tuple[float, float]:
        counts = np.bincount(channel.reshape(-1), minlength=256)
        mean = np.average(levels, weights=counts)
        return mean, np.sqrt(counts @ (levels - mean) ** 2 / (counts.sum() - 1) + 1e-5)

    (mean, std), (source_mean, source_std) = mean_and_std(target), mean_and_std(source)
    return (np.clip((levels - mean) / std * source_std + source_mean, 0, 1) * 255).astype(np.uint8)


def _mean_and_std(image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b 1 1 3"], Float[Array, "b 1 1 3"]]:
    return image.mean((1, 2), keepdims=True), jnp.sqrt(image.var((1, 2), ddof=1, keepdims=True) + 1e-5)


def _blur(image: Float[Array, "b h w 3"], radius: int, axis: int) -> Float[Array, "b h w 3"]:
    """Blurs with [1 2 1] / 4 along one axis, with taps `radius` apart."""
    size = image.shape[axis]
    padding = [(0, 0)] * 4
    padding[axis] = (radius, radius)
    padded = jnp.pad(image, padding, mode="edge")
    near, centre, far = (jax.lax.slice_in_dim(padded, at, at + size, axis=axis) for at in (0, radius, 2 * radius))
    return 0.25 * near + 0.5 * centre + 0.25 * far
