"""The variational autoencoder of Stable Diffusion (diffusers' AutoencoderKL; method §1, §2)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from xpsr_jax.models.blocks import Downsample, ResnetBlock, Upsample, run
from xpsr_jax.models.configs import AutoencoderConfig
from xpsr_jax.models.layers import Compute, conv, flatten_tokens, group_norm
from xpsr_jax.models.parameters import parameters, set_parameters
from xpsr_jax.models.transformer import Attention

_EPSILON = 1e-6
_MAIN_PATH = {"conv_in", "conv_shortcut", "conv2", "downsamplers", "upsamplers"}


class _MidBlock(nnx.Module):
    """Resnet, optional self-attention over all positions with one head, resnet."""

    def __init__(self, features: int, *, groups: int, attention: bool, compute: Compute, rngs: nnx.Rngs):
        self.resnets = nnx.List([_resnet(features, features, groups, compute, rngs) for _ in range(2)])
        if attention:
            self.attentions = nnx.List([_SpatialAttention(features, groups=groups, compute=compute, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.resnets[0](x)
        return self.resnets[1](self.attentions[0](x) if hasattr(self, "attentions") else x)


class _SpatialAttention(Attention):
    def __init__(self, features: int, *, groups: int, compute: Compute, rngs: nnx.Rngs):
        super().__init__(features, heads=1, bias=True, compute=compute, rngs=rngs)
        self.group_norm = group_norm(features, groups, epsilon=_EPSILON, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:  # type: ignore[override]
        return x + super().__call__(flatten_tokens(self.group_norm(x))).reshape(x.shape)


class _Level(nnx.Module):
    """Resnets of one resolution. All levels except the last one then halve or double the size."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        layers: int,
        *,
        direction: str,
        last: bool,
        groups: int,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        self.compute = compute
        self.resnets = nnx.List(
            [
                _resnet(in_features if i == 0 else out_features, out_features, groups, compute, rngs)
                for i in range(layers)
            ]
        )
        if direction == "down" and not last:
            # Padding only at the bottom and right, unlike in the UNet.
            self.downsamplers = nnx.List([Downsample(out_features, padding=(0, 1), compute=compute, rngs=rngs)])
        if direction == "up" and not last:
            self.upsamplers = nnx.List([Upsample(out_features, compute=compute, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for resnet in self.resnets:
            x = run(resnet, x, compute=self.compute)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x, 2 * x.shape[1], 2 * x.shape[2])
        return x


def _resnet(in_features: int, out_features: int, groups: int, compute: Compute, rngs: nnx.Rngs) -> ResnetBlock:
    return ResnetBlock(
        in_features, out_features, time_features=None, groups=groups, epsilon=_EPSILON, compute=compute, rngs=rngs
    )


def _mid_block(features: int, config: AutoencoderConfig, *, compute: Compute, rngs: nnx.Rngs) -> _MidBlock:
    groups, attention = config.norm_num_groups, config.mid_block_add_attention
    return _MidBlock(features, groups=groups, attention=attention, compute=compute, rngs=rngs)


class Encoder(nnx.Module):
    """The encoder, from an image to the moments of the latents' posterior."""

    def __init__(self, config: AutoencoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = conv(config.in_channels, widths[0], compute=compute, rngs=rngs)
        self.down_blocks = nnx.List(
            [
                _Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.layers_per_block,
                    direction="down",
                    last=i == len(widths) - 1,
                    groups=groups,
                    compute=compute,
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.mid_block = _mid_block(widths[-1], config, compute=compute, rngs=rngs)
        self.conv_norm_out = group_norm(widths[-1], groups, epsilon=_EPSILON, compute=compute, rngs=rngs)
        self.conv_out = conv(widths[-1], 2 * config.latent_channels, compute=compute, rngs=rngs)

    def __call__(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b h w moments"]:
        """The input of `quant_conv`, which gives the mean and log variance of the unscaled latents.

        Args:
          image: in [-1, 1]. The result has twice as many channels as the latents.
        """
        x = self.conv_in(image)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """The decoder, from latents to an image."""

    def __init__(self, config: AutoencoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = conv(config.latent_channels, widths[0], compute=compute, rngs=rngs)
        self.mid_block = _mid_block(widths[0], config, compute=compute, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                _Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.layers_per_block + 1,
                    direction="up",
                    last=i == len(widths) - 1,
                    groups=groups,
                    compute=compute,
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.conv_norm_out = group_norm(widths[-1], groups, epsilon=_EPSILON, compute=compute, rngs=rngs)
        self.conv_out = conv(widths[-1], config.out_channels, compute=compute, rngs=rngs)

    def __call__(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """The image, about in [-1, 1] (not clipped).

        Args:
          latents: unscaled, after `post_quant_conv`.
        """
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Autoencoder(nnx.Module):
    """Converts between images in [-1, 1] and latents with 1/`factor` of their size."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs, compute: Compute = Compute()):  # noqa: B008
        self.config = config
        self.encoder = Encoder(config, compute=compute, rngs=rngs)
        self.decoder = Decoder(config, compute=compute, rngs=rngs)
        channels = config.latent_channels
        self.quant_conv = conv(2 * channels, 2 * channels, 1, compute=compute, rngs=rngs)
        self.post_quant_conv = conv(channels, channels, 1, compute=compute, rngs=rngs)

    @property
    def factor(self) -> int:
        """Pixels per latent cell along each axis."""
        factor: int = 2 ** (len(self.config.block_out_channels) - 1)
        return factor

    def moments(self, image: Float[Array, "b H W 3"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Mean and log variance (clipped to [-30, 20]) of the unscaled latents' posterior, in float32."""
        mean, log_variance = jnp.split(self.quant_conv(self.encoder(image)).astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(
        self, image: Float[Array, "b H W 3"], key: Key[Array, ""] | Key[Array, " b"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Scaled latents of an image in [-1, 1].

        With a key (one for all images, or one per image) a sample of the posterior; without a key its mode.
        """
        mean, log_variance = self.moments(image)
        if key is not None:
            mean = mean + jnp.exp(0.5 * log_variance) * _normal(key, mean.shape)
        return mean * self.config.scaling_factor

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """The image, about in [-1, 1] (not clipped), of scaled latents."""
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor)).astype(jnp.float32)


def initialise_near_linear(autoencoder: Autoencoder, key: Key[Array, ""]) -> None:
    """Initialises a small autoencoder, in place, so that it learns within minutes instead of hours.

    Group normalisation removes an image's brightness and contrast, unless other channels of the group provide a
    reference for them. So the convolutions of the main path start with the scale of their input and with large constant
    biases as this reference. Residual branches start small.
    """
    values = parameters(autoencoder)
    changed = {}
    for (path, value), own_key in zip(values.items(), jax.random.split(key, len(values)), strict=True):
        *parents, leaf = path.split(".")
        if leaf == "bias" and _MAIN_PATH.intersection(parents):
            changed[path] = jax.random.uniform(own_key, value.shape, value.dtype, -0.5, 0.5)
        elif leaf == "kernel" and parents[-1] in ("conv2", "to_out"):
            changed[path] = 0.1 * value
        elif leaf == "kernel" and value.ndim == 4:
            changed[path] = math.sqrt(3) * value
    set_parameters(autoencoder, changed)


def _normal(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    if key.ndim == 0:
        return jax.random.normal(key, shape)
    return jax.vmap(lambda one: jax.random.normal(one, shape[1:]))(key)
