"""PSNR and SSIM as jitted functions of batches. `fidelity` has them for one pair in float64.

There are three conventions for the values to compare (`Channels`):

- "y": BT.601 luma in studio range, [16, 235] of 255. Used by BasicSR's `test_y_channel`, MATLAB's `rgb2ycbcr` and the
  released script (method §7).
- "y-full": luma in full range, 0.299 R + 0.587 G + 0.114 B. The default of pyiqa's `psnry` and `ssim`.
- "rgb": all three channels. Used by pyiqa's `psnr`.

PSNR is 1.32 dB higher with studio range than with full range, because errors are smaller by 219 / 255.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xpsr_jax.evaluation.protocols import Channels

# (weights of R, G and B in [0, 1], offset), for values up to 255.
_CHANNELS: dict[str, tuple[np.ndarray, float]] = {
    "y": (np.array([[65.481], [128.553], [24.966]], np.float32), 16.0),
    "y-full": (255 * np.array([[0.299], [0.587], [0.114]], np.float32), 0.0),
    "rgb": (255 * np.eye(3, dtype=np.float32), 0.0),
}
# As in pyiqa, equal images have 80 dB instead of infinity, so that a mean over images stays finite.
_LEAST_ERROR = 1e-8
_WINDOW = np.exp(-(np.arange(-5.0, 6.0) ** 2) / (2 * 1.5**2))
_WINDOW /= _WINDOW.sum()


# They are not registered by register_dataclass: trees of two such classes are equal in jaxlib 0.10.2 if their fields
# are. One metric could then run the program of the other.
@jax.tree_util.register_static
@dataclass(frozen=True)
class Psnr:
    """Peak signal-to-noise ratio in dB, for a peak of 255. 80 for equal images."""

    channels: Channels = "y"

    def features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w c"]:
        """The channels to compare, in 255ths, of images in [0, 1]. Other values are clipped."""
        return _channels(images, self.channels)

    def distance(self, a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, "b"]:
        """PSNR of each pair in dB, from the `features` of both images."""
        error = jnp.mean(((a - b) / 255) ** 2, axis=(1, 2, 3))
        return -10 * jnp.log10(error + _LEAST_ERROR)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Ssim:
    """Structural similarity (Wang et al., 2004), with the definition of `fidelity.ssim_y`. 1 for equal images."""

    channels: Channels = "y"

    def features(self, images: Float[Array, "b h w 3"]) -> tuple[Array, Array, Array]:
        """The channels minus 128, and their means and variances within the window.

        A variance is the difference of two large numbers, and float32 has only seven digits. Subtracting 128 makes the
        numbers smaller.
        """
        x = _channels(images, self.channels) - 128
        mean = _window_mean(x)
        return x, mean, _window_mean(x * x) - mean**2

    def distance(self, a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> Float[Array, "b"]:
        """SSIM of each pair, at most 1, from the `features` of both images."""
        (x, mean_x, variance_x), (y, mean_y, variance_y) = a, b
        covariance = _window_mean(x * y) - mean_x * mean_y
        mean_x, mean_y = mean_x + 128, mean_y + 128
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
        return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _channels(images: Float[Array, "b h w 3"], channels: Channels) -> Float[Array, "b h w c"]:
    weights, offset = _CHANNELS[channels]
    images = jnp.clip(images.astype(jnp.float32), 0, 1)
    return jnp.einsum("bhwc,cd->bhwd", images, weights, precision=jax.lax.Precision.HIGHEST) + offset


def _window_mean(x: Float[Array, "b h w c"]) -> Float[Array, "b h-10 w-10 c"]:
    """The mean within a Gaussian window (11 x 11, sigma 1.5), at all positions at which it is inside the image.

    It is computed as two products with band matrices. With so few channels, convolutions take seven times as long.
    """
    rows, columns = (_band(side) for side in x.shape[1:3])
    return jnp.einsum("bhwc,hi,wj->bijc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)


def _band(size: int) -> Float[Array, "n n-10"]:
    distance = jnp.arange(size)[:, None] - jnp.arange(size - 10)
    weights = jnp.asarray(_WINDOW, jnp.float32)[jnp.clip(distance, 0, 10)]
    return jnp.where((distance >= 0) & (distance <= 10), weights, 0)
