"""Discriminators between photographs and network outputs: one on a frozen UNet's features, one on pixels."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xpsr_jax.models.configs import UNetConfig
from xpsr_jax.models.layers import Compute, conv
from xpsr_jax.models.unet import UNet

_HIDDEN = 64
_PATCH_WIDTHS = (32, 64, 128)


class Discriminator(nnx.Module):
    """A head of two convolutions for the features of each encoder level and of the mid block."""

    def __init__(self, config: UNetConfig, *, compute: Compute, rngs: nnx.Rngs):
        widths = (*config.block_out_channels, config.block_out_channels[-1])
        self.inner = nnx.List([conv(width, _HIDDEN, compute=compute, rngs=rngs) for width in widths])
        self.outer = nnx.List([conv(_HIDDEN, 1, 1, compute=compute, rngs=rngs) for _ in widths])

    def __call__(self, features: Sequence[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ 1"]]:
        """A map of scores for each level. Scores are higher where the latents look like those of a photograph."""
        heads = zip(self.inner, self.outer, features, strict=True)
        return [outer(jax.nn.leaky_relu(inner(_normalised(x)), 0.2)).astype(jnp.float32) for inner, outer, x in heads]


class PatchDiscriminator(nnx.Module):
    """Halves a picture's size three times and scores each part of it (Isola et al., 2017).

    The receptive field of a score is 31 pixels wide.
    """

    def __init__(self, *, compute: Compute, rngs: nnx.Rngs):
        widths = (3, *_PATCH_WIDTHS)
        self.layers = nnx.List(
            [conv(inner, outer, stride=2, compute=compute, rngs=rngs) for inner, outer in itertools.pairwise(widths)]
        )
        self.last = conv(widths[-1], 1, compute=compute, rngs=rngs)

    def __call__(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b h w 1"]:
        """Scores of a picture with values in [-1, 1]. Scores are higher where it looks like a photograph."""
        x = image
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), 0.2)
        return self.last(x).astype(jnp.float32)


def encoder_features(
    unet: UNet, latents: Float[Array, "b h w c"], timesteps: Array, high: Float[Array, "b n d"]
) -> list[Float[Array, "b _ _ _"]]:
    """The last features of each level of the UNet's encoder, then the mid block's. No ControlNet is used."""
    skips, x = unet.encode(latents, timesteps, high)
    levels = {skip.shape[1]: skip for skip in skips}
    return [*levels.values(), x]


def _normalised(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    # The features of different levels differ by orders of magnitude.
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
