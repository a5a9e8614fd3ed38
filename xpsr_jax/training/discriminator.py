"""Tells latents of photographs from those that a student made, by the features of a frozen UNet's encoder."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xpsr_jax.models.configs import UNetConfig
from xpsr_jax.models.layers import Compute, conv
from xpsr_jax.models.unet import UNet

_HIDDEN = 64


class Discriminator(nnx.Module):
    """A head of two convolutions for the features of each of the encoder's levels, and for those of the middle."""

    def __init__(self, config: UNetConfig, *, compute: Compute, rngs: nnx.Rngs):
        widths = (*config.block_out_channels, config.block_out_channels[-1])
        self.inner = nnx.List([conv(width, _HIDDEN, compute=compute, rngs=rngs) for width in widths])
        self.outer = nnx.List([conv(_HIDDEN, 1, 1, compute=compute, rngs=rngs) for _ in widths])

    def __call__(self, features: Sequence[Float[Array, "b _ _ _"]]) -> list[Float[Array, "b _ _ 1"]]:
        """Of each level a map of scores, higher where the latents look like those of a photograph."""
        heads = zip(self.inner, self.outer, features, strict=True)
        return [outer(jax.nn.leaky_relu(inner(_normalised(x)), 0.2)).astype(jnp.float32) for inner, outer, x in heads]


def encoder_features(
    unet: UNet, latents: Float[Array, "b h w c"], timesteps: Array, high: Float[Array, "b n d"]
) -> list[Float[Array, "b _ _ _"]]:
    """The last features of each level of the UNet's encoder, and the middle's; without a ControlNet."""
    skips, x = unet.encode(latents, timesteps, high)
    levels = {skip.shape[1]: skip for skip in skips}
    return [*levels.values(), x]


def _normalised(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    # Features of different levels differ in size by orders.
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
