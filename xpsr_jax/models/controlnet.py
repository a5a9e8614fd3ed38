"""XPSR's ControlNet: Semantic-Fusion Attention, image encoder and Degradation-Free Constraint heads (method §3)."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from xpsr_jax.models.blocks import Text, TextEmbedding, project_text_at
from xpsr_jax.models.configs import ControlNetConfig
from xpsr_jax.models.layers import Compute, conv, timestep_embedding
from xpsr_jax.models.parameters import parameters, set_parameters
from xpsr_jax.models.rrdb import ResidualInResidualDenseBlock
from xpsr_jax.models.unet import UNet, encoder


class ImageFeatures(NamedTuple):
    """The ControlNet's features of the image. They do not depend on the step.

    Attributes:
      embedding: added to the first feature of the latents.
      rgb_predictions: predictions of the pixel heads in [-1, 1], finest first (empty without heads).
    """

    embedding: Float[Array, "b h w c"]
    rgb_predictions: tuple[Array, ...]


class ControlNetOutput(NamedTuple):
    """The ControlNet's features for the UNet, and its predictions of the clean latents.

    Attributes:
        residuals: one for each encoder feature, times the conditioning scale.
        mid: the mid block's feature, times the conditioning scale.
        latent_predictions: predictions of the latent heads, one per residual, then the mid block's (empty without
            heads). They do not depend on the conditioning scale.
    """

    residuals: tuple[Array, ...]
    mid: Float[Array, "b h w c"]
    latent_predictions: tuple[Array, ...]


class ImageEncoder(nnx.Module):
    """Encodes the image, in [0, 1], down to the latents' size.

    A pixel head after each downsampling predicts the clean image.
    """

    def __init__(
        self, config: ControlNetConfig, out_features: int, *, with_heads: bool, compute: Compute, rngs: nnx.Rngs
    ):
        widths = config.conditioning_embedding_out_channels
        self.conv_in = conv(config.conditioning_channels, widths[0], compute=compute, rngs=rngs)
        if config.use_rrdb:
            self.preprocesser = nnx.List(
                [ResidualInResidualDenseBlock(widths[0], compute=compute, rngs=rngs) for _ in range(2)]
            )
        self.blocks: nnx.List[nnx.Conv] = nnx.List()
        for narrow, wide in itertools.pairwise(widths):
            self.blocks.append(conv(narrow, narrow, compute=compute, rngs=rngs))
            self.blocks.append(conv(narrow, wide, stride=2, padding=1, compute=compute, rngs=rngs))
        if with_heads:
            self.to_rgbs = nnx.List([conv(width, 3, compute=compute, rngs=rngs) for width in widths[1:]])
        self.conv_out = conv(widths[-1], out_features, zero=True, compute=compute, rngs=rngs)

    def __call__(self, image: Float[Array, "b H W 3"]) -> ImageFeatures:
        """Features of the image and, with heads, its predictions of the clean image (method §3).

        Args:
          image: in [0, 1]. The first prediction has half its height and width, and each further one half of the
            previous one. The embedding has the size of the last prediction.
        """
        h = jax.nn.silu(self.conv_in(image))
        for block in getattr(self, "preprocesser", ()):
            h = block(h)
        stages = []
        for i in range(0, len(self.blocks), 2):
            h = jax.nn.silu(self.blocks[i](h))
            h = jax.nn.silu(self.blocks[i + 1](h))
            stages.append(h)
        heads = getattr(self, "to_rgbs", ())
        return ImageFeatures(
            self.conv_out(h), tuple(head(stage).astype(jnp.float32) for head, stage in zip(heads, stages, strict=False))
        )


class ControlNet(nnx.Module):
    """Steers the UNet with features of the low-resolution image and both captions."""

    def __init__(
        self,
        config: ControlNetConfig,
        *,
        rngs: nnx.Rngs,
        compute: Compute = Compute(),  # noqa: B008
        with_constraint_heads: bool = False,
    ):
        """`with_constraint_heads` builds the heads of the Degradation-Free Constraint that the config enables.

        Only training needs them.
        """
        self.config = config
        self.conv_in, self.time_embedding, self.down_blocks, self.mid_block = encoder(
            config, fusion=config.fusion, compute=compute, rngs=rngs
        )
        channels, widths = config.feature_channels, config.block_out_channels
        self.controlnet_cond_embedding = ImageEncoder(
            config, widths[0], with_heads=with_constraint_heads and config.return_rgbs, compute=compute, rngs=rngs
        )
        self.controlnet_down_blocks = nnx.List([conv(c, c, 1, zero=True, compute=compute, rngs=rngs) for c in channels])
        self.controlnet_mid_block = conv(widths[-1], widths[-1], 1, zero=True, compute=compute, rngs=rngs)
        if with_constraint_heads and config.use_latent_pred:
            self.conv_degradation = nnx.List(
                [conv(c, config.in_channels, compute=compute, rngs=rngs) for c in channels]
            )
            self.conv_degradation_mid = conv(widths[-1], config.in_channels, compute=compute, rngs=rngs)

    def encode_image(self, image: Float[Array, "b H W 3"]) -> ImageFeatures:
        """Features of an image in [0, 1], 2^(stages) times as large as the latents. Once per image, not per step."""
        return self.controlnet_cond_embedding(image)

    def project_text(self, embedding: Float[Array, "b n d"]) -> Text:
        """Keys and values of every text cross-attention, the same in all steps. Pass the result as `high` or `low`."""
        high = project_text_at(self, "attentions", embedding)
        return Text(high, project_text_at(self, "attentions_lowlevel", embedding))

    def __call__(
        self,
        latents: Float[Array, "_ h w c"],
        timesteps: Int[Array, " _"] | Float[Array, " _"],
        high: TextEmbedding,
        low: TextEmbedding | None,
        image_features: ImageFeatures,
        *,
        scale: float | Float[Array, ""] = 1.0,
    ) -> ControlNetOutput:
        """Features that steer the UNet (method §3).

        `low=None` leaves out the low-level branch. `scale` multiplies residuals and mid. There may be several texts for
        each sample of the latents. The features then have as many samples, except those before the first attention to
        a text.
        """
        time = self.time_embedding(
            timestep_embedding(
                timesteps,
                self.config.block_out_channels[0],
                flip_sin_to_cos=self.config.flip_sin_to_cos,
                freq_shift=self.config.freq_shift,
            )
        )
        x = self.conv_in(latents) + image_features.embedding
        features = [x]
        for i, block in enumerate(self.down_blocks):
            x, block_features = block(x, time, high, low, path=f"down_blocks.{i}")
            features += block_features
        x = self.mid_block(x, time, high, low, path="mid_block")
        residuals = [zero(feature) for zero, feature in zip(self.controlnet_down_blocks, features, strict=True)]
        mid = self.controlnet_mid_block(x)
        predictions: tuple[Array, ...] = ()
        if hasattr(self, "conv_degradation"):
            heads = [*self.conv_degradation, self.conv_degradation_mid]
            predictions = tuple(head(r).astype(jnp.float32) for head, r in zip(heads, [*residuals, mid], strict=True))
        return ControlNetOutput(tuple(r * scale for r in residuals), mid * scale, predictions)


def unet_twin(path: str) -> str | None:
    """The UNet parameter that initialises a ControlNet parameter, if their shapes are equal (method §5).

    conv_in, time_embedding, resnets, downsamplers and `attentions` have a twin with the same name. The twin of
    `attentions_lowlevel` and `attentions_connect` is the UNet's `attentions` at the same site. All others have no twin.
    """
    if path.split(".")[0] not in ("conv_in", "time_embedding", "down_blocks", "mid_block"):
        return None
    return path.replace(".attentions_lowlevel.", ".attentions.").replace(".attentions_connect.", ".attentions.")


def initialise_from_unet(controlnet: ControlNet, unet: UNet) -> None:
    """Copies the UNet's encoder into the ControlNet, in place, by `unet_twin`.

    All other parameters are unchanged.
    """
    source = parameters(unet)
    copied = {}
    for path, value in parameters(controlnet).items():
        twin = source.get(unet_twin(path) or "")
        if twin is not None and twin.shape == value.shape:
            copied[path] = twin
    set_parameters(controlnet, copied)
