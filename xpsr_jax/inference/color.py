"""Colour fix: gives the restored image the colours of the LR image (method §8). Images are float in [0, 1]."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

ColorFix = Literal["adain", "wavelet", "none"]

_WAVELET_RADII = (1, 2, 4, 8, 16)


def fix_color(
    target: Float[Array, "b h w 3"], source: Float[Array, "b h2 w2 3"], method: ColorFix
) -> Float[Array, "b h w 3"]:
    """Colours `target` like `source`. The result may leave [0, 1]; "wavelet" needs both at one size."""
    if method == "adain":
        return adain(target, source)
    if method == "wavelet":
        return wavelet(target, source)
    if method == "none":
        return target
    raise ValueError(f'colour fix "{method}" is unknown: use "adain", "wavelet" or "none"')


def adain(target: Float[Array, "b h w 3"], source: Float[Array, "b h2 w2 3"]) -> Float[Array, "b h w 3"]:
    """Gives `target`'s channels the mean and (unbiased) deviation of `source`'s. Not clipped; sizes may differ."""
    target_mean, target_std = _mean_and_std(target)
    source_mean, source_std = _mean_and_std(source)
    return (target - target_mean) / target_std * source_std + source_mean


def wavelet(target: Float[Array, "b h w 3"], source: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """`target`'s detail upon `source`'s low frequencies. Not clipped."""
    return target - low_frequencies(target) + low_frequencies(source)


def low_frequencies(image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """What five à-trous blurs [1 2 1] / 4 of radius 1, 2, 4, 8, 16 in cascade leave, edges replicated."""
    for radius in _WAVELET_RADII:
        image = _blur(_blur(image, radius, axis=1), radius, axis=2)
    return image


def to_uint8(image: Float[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Clips to [0, 1] and truncates 255x, as torchvision's ToPILImage does after the released code's colour fix."""
    return (jnp.clip(image, 0, 1) * 255).astype(jnp.uint8)


def _mean_and_std(image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b 1 1 3"], Float[Array, "b 1 1 3"]]:
    return image.mean((1, 2), keepdims=True), jnp.sqrt(image.var((1, 2), ddof=1, keepdims=True) + 1e-5)


def _blur(image: Float[Array, "b h w 3"], radius: int, axis: int) -> Float[Array, "b h w 3"]:
    """[1 2 1] / 4 along one axis, taps `radius` apart."""
    size = image.shape[axis]
    padding = [(0, 0)] * 4
    padding[axis] = (radius, radius)
    padded = jnp.pad(image, padding, mode="edge")
    near, centre, far = (jax.lax.slice_in_dim(padded, at, at + size, axis=axis) for at in (0, radius, 2 * radius))
    return 0.25 * near + 0.5 * centre + 0.25 * far
