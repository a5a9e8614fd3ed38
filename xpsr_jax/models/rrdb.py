"""Residual-in-residual dense blocks (ESRGAN, Wang et al. 2018).

The optional preprocessing of the ControlNet's image encoder (method §3).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xpsr_jax.models.layers import Compute, conv

_RESIDUAL_SCALE = 0.2
_SLOPE = 0.2


class DenseBlock(nnx.Module):
    """Five 3x3 convolutions, each over all that came before it, with a scaled residual."""

    def __init__(self, features: int, growth: int, *, compute: Compute, rngs: nnx.Rngs):
        self.conv1 = conv(features, growth, compute=compute, rngs=rngs)
        self.conv2 = conv(features + growth, growth, compute=compute, rngs=rngs)
        self.conv3 = conv(features + 2 * growth, growth, compute=compute, rngs=rngs)
        self.conv4 = conv(features + 3 * growth, growth, compute=compute, rngs=rngs)
        self.conv5 = conv(features + 4 * growth, features, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The feature map with its residual added; `growth` channels come with each convolution but the last."""
        seen = x
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = jnp.concatenate([seen, jax.nn.leaky_relu(layer(seen), _SLOPE)], axis=-1)
        return x + _RESIDUAL_SCALE * self.conv5(seen)


class ResidualInResidualDenseBlock(nnx.Module):
    """Three dense blocks with a scaled residual around them."""

    def __init__(self, features: int, growth: int = 32, *, compute: Compute, rngs: nnx.Rngs):
        self.rdb1 = DenseBlock(features, growth, compute=compute, rngs=rngs)
        self.rdb2 = DenseBlock(features, growth, compute=compute, rngs=rngs)
        self.rdb3 = DenseBlock(features, growth, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The feature map with the residual of its three dense blocks added."""
        return x + _RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))
