"""The denoising UNet of Stable Diffusion with XPSR's Conditional Attention (method §2, §4)."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from xpsr_jax.models.blocks import (
    DownBlock,
    MidBlock,
    ResnetBlock,
    Text,
    TextEmbedding,
    TimeEmbedding,
    UpBlock,
    project_text_at,
)
from xpsr_jax.models.configs import EncoderConfig, Fusion, UNetConfig
from xpsr_jax.models.layers import Compute, aligned, conv, group_norm, timestep_embedding
from xpsr_jax.models.transformer import Transformer


def encoder(
    config: EncoderConfig, *, fusion: Fusion, compute: Compute, rngs: nnx.Rngs
) -> tuple[nnx.Conv, TimeEmbedding, nnx.List, MidBlock]:
    """The submodules common to UNet and ControlNet: conv_in, time_embedding, down_blocks, mid_block."""
    widths, heads = config.block_out_channels, config.heads
    time_features = 4 * widths[0]
    resnet, transformer = layer_makers(config, compute=compute, rngs=rngs)
    down_blocks: nnx.List[DownBlock] = nnx.List()
    for i, (width, kind) in enumerate(zip(widths, config.down_block_types, strict=True)):
        if kind not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise ValueError(f"unsupported down block {kind!r}; supported: CrossAttnDownBlock2D, DownBlock2D")
        down_blocks.append(
            DownBlock(
                widths[max(i - 1, 0)],
                width,
                layers=config.layers_per_block,
                text_features=config.cross_attention_dim,
                fusion=fusion,
                make=functools.partial(transformer, heads=heads[i]) if kind == "CrossAttnDownBlock2D" else None,
                downsample_padding=config.downsample_padding if i < len(widths) - 1 else None,
                resnet=resnet,
                compute=compute,
                rngs=rngs,
            )
        )
    return (
        conv(config.in_channels, widths[0], compute=compute, rngs=rngs),
        TimeEmbedding(widths[0], time_features, compute=compute, rngs=rngs),
        down_blocks,
        MidBlock(
            widths[-1],
            text_features=config.cross_attention_dim,
            fusion=fusion,
            make=functools.partial(transformer, heads=heads[-1]),
            resnet=resnet,
            compute=compute,
        ),
    )


def layer_makers(
    config: EncoderConfig, *, compute: Compute, rngs: nnx.Rngs
) -> tuple[Callable[[int, int], ResnetBlock], Callable[..., Transformer]]:
    """Functions that make layers with the config's settings.

    The first makes a resnet (in, out), the second a transformer (features, heads=, context_features=).
    """
    resnet = functools.partial(
        ResnetBlock,
        time_features=4 * config.block_out_channels[0],
        groups=config.norm_num_groups,
        epsilon=config.norm_eps,
        compute=compute,
        rngs=rngs,
    )
    transformer = functools.partial(
        Transformer,
        layers=config.transformer_layers_per_block,
        groups=config.norm_num_groups,
        linear_projection=config.use_linear_projection,
        compute=compute,
        rngs=rngs,
    )
    return resnet, transformer


class KeptFeatures(NamedTuple):
    """Features of a step, kept for later steps that compute only the outermost layers of the network.

    Attributes:
        deep: the decoder's features before its outermost layers, (b h w c).
        residuals: the ControlNet's residuals at these layers, (b h w c) each, outermost first; None: no ControlNet.
    """

    deep: Array
    residuals: tuple[Array, ...] | None


class UNet(nnx.Module):
    """Predicts the noise (or velocity) in latents.

    Uses the ControlNet's features by addition and by Conditional Attention.
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs, compute: Compute = Compute()):  # noqa: B008
        self.config = config
        widths, heads, levels = config.block_out_channels, config.heads, len(config.block_out_channels)
        self.conv_in, self.time_embedding, self.down_blocks, self.mid_block = encoder(
            config, fusion="high", compute=compute, rngs=rngs
        )
        resnet, transformer = layer_makers(config, compute=compute, rngs=rngs)
        skips = config.feature_channels
        self.up_blocks: nnx.List[UpBlock] = nnx.List()
        for i, kind in enumerate(config.up_block_types):
            if kind not in ("CrossAttnUpBlock2D", "UpBlock2D"):
                raise ValueError(f"unsupported up block {kind!r}; supported: CrossAttnUpBlock2D, UpBlock2D")
            level = levels - 1 - i
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(
                UpBlock(
                    widths[min(level + 1, levels - 1)],
                    widths[level],
                    taken,
                    text_features=config.cross_attention_dim,
                    make=functools.partial(transformer, heads=heads[level]),
                    attended=kind == "CrossAttnUpBlock2D",
                    conditional=config.conditional_attention,
                    upsample=level > 0,
                    resnet=resnet,
                    compute=compute,
                    rngs=rngs,
                )
            )
        self.conv_norm_out = group_norm(
            widths[0], config.norm_num_groups, epsilon=config.norm_eps, compute=compute, rngs=rngs
        )
        self.conv_out = conv(widths[0], config.out_channels, compute=compute, rngs=rngs)

    def project_text(self, embedding: Float[Array, "b n d"]) -> Text:
        """Keys and values of every text cross-attention, the same in all steps. Pass the result as `high`."""
        return Text(high=project_text_at(self, "attentions", embedding))

    def __call__(
        self,
        latents: Float[Array, "_ h w c"],
        timesteps: Int[Array, " _"] | Float[Array, " _"],
        high: TextEmbedding,
        residuals: tuple[Array, ...] | None = None,
        mid: Float[Array, "_ h8 w8 widest"] | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predicts the noise in `latents` (or the velocity, according to the schedule's prediction_type), in float32.

        `residuals` and `mid` are a ControlNet's outputs. A stock UNet (`conditional_attention=False`) also runs without
        them. If `high` has several texts per sample of the latents, as in guidance, the result has as many samples,
        side by side.
        """
        return self.predict_and_keep(latents, timesteps, high, residuals, mid)[0]

    def encode(
        self, latents: Float[Array, "b h w c"], timesteps: Int[Array, " b"] | Float[Array, " b"], high: TextEmbedding
    ) -> tuple[list[Array], Array]:
        """The features of the encoder, finest first, and of the mid block, without a ControlNet."""
        return self._encode(latents, self._embed_time(timesteps), high)

    def predict_and_keep(
        self,
        latents: Float[Array, "_ h w c"],
        timesteps: Int[Array, " _"] | Float[Array, " _"],
        high: TextEmbedding,
        residuals: tuple[Array, ...] | None = None,
        mid: Float[Array, "_ h8 w8 widest"] | None = None,
        *,
        outer_layers: int = 1,
    ) -> tuple[Float[Array, "b h w out"], KeptFeatures]:
        """The prediction, and the features that `predict_from_kept` needs to predict again at a nearby timestep.

        Args:
            outer_layers: number of last decoder layers that `predict_from_kept` will recompute. From 1 to
                `config.layers_per_block + 1`, which are all layers of the finest level.

        Raises ValueError for other numbers of layers, and for Conditional Attention without residuals.
        """
        if self.config.conditional_attention and residuals is None:
            raise ValueError(
                "Conditional Attention needs the ControlNet's residuals; without them use conditional_attention=False"
            )
        self._check_outer_layers(outer_layers)
        time = self._embed_time(timesteps)
        skips, x = self._encode(latents, time, high)
        if residuals is not None and mid is not None:
            x = jnp.add(*aligned(x, mid))
            skips = _added(skips, residuals)
        controls = residuals if residuals is not None and self.config.conditional_attention else None
        for i, block in enumerate(self.up_blocks[:-1]):
            layers = len(block.resnets)
            x = block(x, time, high, *_last_first(layers, skips, controls), path=f"up_blocks.{i}")
            skips, controls = skips[:-layers], controls and controls[:-layers]
            x = block.upsample(x, *skips[-1].shape[1:3])
        inner = len(skips) - outer_layers
        decode = functools.partial(self.up_blocks[-1], path=f"up_blocks.{len(self.up_blocks) - 1}")
        x = decode(x, time, high, *_last_first(inner, skips, controls))
        kept = KeptFeatures(x, None if residuals is None else residuals[:outer_layers])
        skips, controls = skips[:outer_layers], controls and controls[:outer_layers]
        x = decode(x, time, high, *_last_first(outer_layers, skips, controls), first=inner)
        return self._head(x), kept

    def predict_from_kept(
        self,
        latents: Float[Array, "_ h w c"],
        timesteps: Int[Array, " _"] | Float[Array, " _"],
        high: TextEmbedding,
        kept: KeptFeatures,
        *,
        outer_layers: int = 1,
    ) -> Float[Array, "b h w c"]:
        """Predicts with only the outermost layers, using features of an earlier step (Ma et al., 2024, DeepCache).

        The last `outer_layers` layers of the decoder are recomputed, with the encoder layers that they use. All other
        features, including the ControlNet's, come from `kept`, which must be made with the same `outer_layers`.
        """
        self._check_outer_layers(outer_layers)
        time = self._embed_time(timesteps)
        x = self.conv_in(latents)
        _, features = self.down_blocks[0](x, time, high, None, path="down_blocks.0", layers=outer_layers - 1)
        skips = [x, *features]
        if kept.residuals is not None:
            skips = _added(skips, kept.residuals)
        controls = kept.residuals if self.config.conditional_attention else None
        last = len(self.up_blocks) - 1
        decoder = self.up_blocks[last]
        first = len(decoder.resnets) - outer_layers
        x = decoder(
            kept.deep, time, high, *_last_first(outer_layers, skips, controls), path=f"up_blocks.{last}", first=first
        )
        return self._head(x)

    def _encode(
        self, latents: Float[Array, "_ h w c"], time: Float[Array, " _ t"], high: TextEmbedding
    ) -> tuple[list[Array], Array]:
        x = self.conv_in(latents)
        skips = [x]
        for i, block in enumerate(self.down_blocks):
            x, features = block(x, time, high, None, path=f"down_blocks.{i}")
            skips += features
        return skips, self.mid_block(x, time, high, None, path="mid_block")

    def _check_outer_layers(self, number: int) -> None:
        most = len(self.up_blocks[-1].resnets)
        if not 1 <= number <= most:
            raise ValueError(f"between 1 and {most} layers of the finest level can be recomputed, not {number}")

    def _embed_time(self, timesteps: Int[Array, " b"] | Float[Array, " b"]) -> Float[Array, "b t"]:
        config = self.config
        embedding = timestep_embedding(
            timesteps,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        return self.time_embedding(embedding)

    def _head(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x))).astype(jnp.float32)


def _added(skips: Sequence[Array], residuals: Sequence[Array]) -> list[Array]:
    """The encoder's features plus the ControlNet's residuals."""
    return [jnp.add(*aligned(*pair)) for pair in zip(skips, residuals, strict=True)]


def _last_first(
    count: int, skips: Sequence[Array], controls: Sequence[Array] | None
) -> tuple[list[Array], list[Array] | None]:
    """The last `count` features of both, last one first, in the order of the decoder's layers."""
    taken = slice(len(skips) - count, None)
    return list(reversed(skips[taken])), None if controls is None else list(reversed(controls[taken]))
