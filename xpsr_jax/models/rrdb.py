"""Residual-in-residual dense blocks (ESRGAN, Wang et al. 2018), and Real-ESRGAN's network built from them.

Two such blocks are the optional preprocessing of the ControlNet's image encoder (method §3). The whole network is a
first stage: it cleans an LR picture before diffusion, as DiffBIR (Lin et al., 2023) does with another network.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.layers import Compute, conv, nearest_resize

_RESIDUAL_SCALE = 0.2
_SLOPE = 0.2


class DenseBlock(nnx.Module):
    """Five 3x3 convolutions with a scaled residual. Each one sees the input and the outputs of all previous ones."""

    def __init__(self, features: int, growth: int, *, compute: Compute, rngs: nnx.Rngs):
        self.conv1 = conv(features, growth, compute=compute, rngs=rngs)
        self.conv2 = conv(features + growth, growth, compute=compute, rngs=rngs)
        self.conv3 = conv(features + 2 * growth, growth, compute=compute, rngs=rngs)
        self.conv4 = conv(features + 3 * growth, growth, compute=compute, rngs=rngs)
        self.conv5 = conv(features + 4 * growth, features, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The feature map plus its residual. Each convolution except the last adds `growth` channels."""
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
        """The feature map plus the residual of its three dense blocks."""
        return x + _RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nnx.Module):
    """ESRGAN's generator: makes a clean, larger picture from a degraded one (Wang et al., 2018 and 2021).

    Attributes have the names of BasicSR's keys. Only `conv_up1`, `conv_up2`, ... are one list here.
    """

    def __init__(self, config: RRDBNetConfig, *, rngs: nnx.Rngs, compute: Compute = Compute()):  # noqa: B008
        self.config = config
        features = config.features
        self.conv_first = conv(3 * config.unshuffle**2, features, compute=compute, rngs=rngs)
        self.body = nnx.List(
            [
                ResidualInResidualDenseBlock(features, config.growth, compute=compute, rngs=rngs)
                for _ in range(config.blocks)
            ]
        )
        self.conv_body = conv(features, features, compute=compute, rngs=rngs)
        self.conv_up = nnx.List([conv(features, features, compute=compute, rngs=rngs) for _ in range(config.doublings)])
        self.conv_hr = conv(features, features, compute=compute, rngs=rngs)
        self.conv_last = conv(features, 3, compute=compute, rngs=rngs)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b H W 3"]:
        """The picture `config.scale` times as large, about in [0, 1] (not clipped), float32.

        Args:
          image: in [0, 1]. If its sides are not multiples of `config.unshuffle`, it is padded by reflection, and the
            result is cropped.
        """
        _, height, width, _ = image.shape
        below, right = -height % self.config.unshuffle, -width % self.config.unshuffle
        image = jnp.pad(
            image, ((0, 0), (0, below), (0, right), (0, 0)), mode="reflect" if min(height, width) > 3 else "edge"
        )
        first = self.conv_first(pixel_unshuffle(image, self.config.unshuffle))
        x = first + self.conv_body(_through(self.body, first))
        for layer in self.conv_up:
            x = jax.nn.leaky_relu(layer(nearest_resize(x, 2 * x.shape[1], 2 * x.shape[2])), _SLOPE)
        x = self.conv_last(jax.nn.leaky_relu(self.conv_hr(x), _SLOPE)).astype(jnp.float32)
        return x[:, : self.config.scale * height, : self.config.scale * width]


def pixel_unshuffle(image: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 d"]:
    """Merges squares of side² pixels into cells with more channels (BasicSR's order: channel, row, column)."""
    b, h, w, c = image.shape
    squares = image.reshape(b, h // side, side, w // side, side, c)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // side, w // side, c * side * side)


def _through(blocks: nnx.List, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Applies all blocks in a loop. They have the same structure, so only one is compiled."""
    graphs, weights = zip(*(nnx.split(block) for block in blocks), strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    x, _ = jax.lax.scan(lambda x, weights: (nnx.merge(graphs[0], weights)(x), None), x, stacked)
    return x
