"""Blocks of the UNet and the ControlNet: resnets, and stages that attend to the captions (method §2 to §4)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Primitive
from jaxtyping import Array, Float

from xpsr_jax.models.configs import Fusion
from xpsr_jax.models.layers import Compute, aligned, conv, flatten_tokens, group_norm, linear, nearest_resize
from xpsr_jax.models.transformer import Context, Transformer
from xpsr_jax.models.two_pass import ATTENDED


@dataclass(frozen=True)
class Text:
    """The result of `project_text`: keys and values of every text cross-attention, by the transformers' paths.

    Attributes:
      high: for the transformers that attend to the high-level caption ("down_blocks.0.attentions.1").
      low: for those that attend to the low-level caption (in a ControlNet: "down_blocks.0.attentions_lowlevel.1").
    """

    high: Mapping[str, Context] = field(default_factory=dict)
    low: Mapping[str, Context] = field(default_factory=dict)


jax.tree_util.register_dataclass(Text)

# The two captions may have different numbers of samples (`layers.aligned`).
TextEmbedding = Float[Array, "_ _ d"] | Text


def project_text_at(
    network: nnx.Module, kind: Literal["attentions", "attentions_lowlevel"], embedding: Float[Array, "b n d"]
) -> dict[str, Context]:
    """Keys and values of an embedding for each transformer of this kind in the network, by the transformer's path."""
    return {
        ".".join(map(str, path)): module.project_context(embedding)
        for path, module in nnx.iter_modules(network)
        if isinstance(module, Transformer) and path[-2] == kind
    }


def context_at(text: TextEmbedding | None, branch: Literal["high", "low"], path: str) -> Context | None:
    """The context of the transformer at a path: its projected keys and values, or the embedding itself."""
    return getattr(text, branch)[path] if isinstance(text, Text) else text


def run(block: nnx.Module, *args: Any, compute: Compute) -> Array:
    """Calls a block. With `compute.remat` the backward pass recomputes it from the results of its products."""
    call: Callable[..., Array] = type(block).__call__
    return nnx.remat(call, policy=_STORED)(block, *args) if compute.remat else call(block, *args)


def _is_product_with_weights(primitive: Primitive, *_: object, **parameters: Any) -> bool:
    """True for products with weights: expensive, with small results. The products of attention (scores) are not."""
    if primitive is jax.lax.dot_general_p:
        _, batched = parameters["dimension_numbers"]
        return not any(batched)
    return primitive is jax.lax.conv_general_dilated_p


# The results that are stored for a block's backward pass. All others, like norms and activations, are recomputed.
_STORED = jax.checkpoint_policies.save_from_both_policies(
    _is_product_with_weights, jax.checkpoint_policies.save_only_these_names(ATTENDED)
)


class ResnetBlock(nnx.Module):
    """Two normalised 3x3 convolutions with a residual.

    A time embedding, if given, is added between them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        time_features: int | None,
        groups: int,
        epsilon: float = 1e-5,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        self.norm1 = group_norm(in_features, groups, epsilon=epsilon, compute=compute, rngs=rngs)
        self.conv1 = conv(in_features, out_features, compute=compute, rngs=rngs)
        if time_features is not None:
            self.time_emb_proj = linear(time_features, out_features, compute=compute, rngs=rngs)
        self.norm2 = group_norm(out_features, groups, epsilon=epsilon, compute=compute, rngs=rngs)
        self.conv2 = conv(out_features, out_features, compute=compute, rngs=rngs)
        if in_features != out_features:
            self.conv_shortcut = conv(in_features, out_features, 1, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "_ h w c"], time: Float[Array, "_ t"] | None = None) -> Float[Array, "b h w d"]:
        """The residual block (method §2).

        Args:
          x: feature map with `in_features` channels; the result has d = `out_features`.
          time: embedding from `TimeEmbedding`; None for a block without `time_features`. `x` and `time` may have
            different numbers of samples (`layers.aligned`).
        """
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if time is not None:
            h, time = aligned(h, self.time_emb_proj(jax.nn.silu(time))[:, None, None])
            h = h + time
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h


class Downsample(nnx.Module):
    """Halves height and width with a strided convolution."""

    def __init__(self, features: int, *, padding: int | tuple[int, int] = 1, compute: Compute, rngs: nnx.Rngs):
        self.conv = conv(features, features, stride=2, padding=padding, compute=compute, rngs=rngs)
        # An odd size h becomes (h + 1) / 2 if both sides are padded, otherwise (h - 1) / 2.
        self.border = 2 * padding if isinstance(padding, int) else sum(padding)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b (h+{self.border}-1)//2 (w+{self.border}-1)//2 c"]:
        """The feature map at half its size. Odd sizes are rounded up if both sides are padded, otherwise down."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest-neighbour resize, then a convolution."""

    def __init__(self, features: int, *, compute: Compute, rngs: nnx.Rngs):
        self.conv = conv(features, features, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b {height} {width} c"]:
        """The feature map at the given size, that of the next skip: twice its own size, one less for odd sizes."""
        return self.conv(nearest_resize(x, height, width))


class TimeEmbedding(nnx.Module):
    """Two linear layers over the sinusoidal embedding."""

    def __init__(self, in_features: int, features: int, *, compute: Compute, rngs: nnx.Rngs):
        self.linear_1 = linear(in_features, features, compute=compute, rngs=rngs)
        self.linear_2 = linear(features, features, compute=compute, rngs=rngs)

    def __call__(self, embedding: Float[Array, "b c"]) -> Float[Array, "b t"]:
        """The time embedding for all resnets.

        Args:
          embedding: sinusoidal, from `layers.timestep_embedding`; the result has t = `features`.
        """
        return self.linear_2(jax.nn.silu(self.linear_1(embedding)))


def semantic_fusion_attention(
    x: Float[Array, "_ h w c"],
    high: Context,
    low: Context | None,
    *,
    attend_high: Callable[[Array, Context], Array],
    attend_low: Callable[[Array, Context], Array],
    fuse: Callable[[Array, Context], Array],
) -> Float[Array, "b h w c"]:
    """Fuses the high- and low-level captions into the feature map in parallel (paper, eq. 2; method §3).

    The high-level result is the query and the residual stream; the low-level result gives keys and values. Without a
    low-level caption the high-level result is returned.
    """
    queries = attend_high(x, high)
    if low is None:
        return queries
    return fuse(queries, flatten_tokens(attend_low(x, low)))


class CaptionAttention(nnx.Module):
    """Attention to the captions, for down and mid blocks: lists of transformers, with one of each kind per layer.

    The lists have their released names: `attentions` (high level), `attentions_lowlevel`, `attentions_connect` (the
    fusion). `fusion` determines which of them exist.
    """

    attentions: nnx.List
    attentions_lowlevel: nnx.List
    attentions_connect: nnx.List
    fusion: Fusion
    compute: Compute

    def build_attentions(
        self, layers: int, features: int, text_features: int, fusion: Fusion, make: Callable[..., Transformer]
    ) -> None:
        """Makes the lists of transformers that `fusion` needs; called once, by the block's `__init__`.

        Args:
          layers: attention sites of the block.
          features: channels of the block's feature map.
          text_features: channels of the captions' embeddings.
          fusion: "sfa", or one of the ablations (paper, Table 3).
          make: `make(features, context_features=...) -> Transformer`.
        """
        self.fusion = fusion
        if fusion != "low":
            self.attentions = nnx.List([make(features, context_features=text_features) for _ in range(layers)])
        if fusion != "high":
            self.attentions_lowlevel = nnx.List([make(features, context_features=text_features) for _ in range(layers)])
        if fusion == "sfa":
            self.attentions_connect = nnx.List([make(features, context_features=features) for _ in range(layers)])

    def attend(
        self, layer: int, x: Array, high: TextEmbedding | None, low: TextEmbedding | None, *, path: str
    ) -> Array:
        """Attends to both captions after a layer, according to `fusion` (paper, Table 3).

        `path` is the block's path in its network. Projected keys and values are found by it.
        """

        def transformer(kind: nnx.List) -> Callable[[Array, Context], Array]:
            return lambda x, context: run(kind[layer], x, context, compute=self.compute)

        high_context = context_at(high, "high", f"{path}.attentions.{layer}") if self.fusion != "low" else None
        low_context = context_at(low, "low", f"{path}.attentions_lowlevel.{layer}") if self.fusion != "high" else None
        if self.fusion == "sfa":
            assert high_context is not None  # Only the low-level caption is optional.
            return semantic_fusion_attention(
                x,
                high_context,
                low_context,
                attend_high=transformer(self.attentions),
                attend_low=transformer(self.attentions_lowlevel),
                fuse=transformer(self.attentions_connect),
            )
        if self.fusion == "low" and low_context is None:
            raise ValueError('fusion="low" needs the low-level caption, but low is None')
        if high_context is not None:
            x = transformer(self.attentions)(x, high_context)
        if low_context is not None:
            x = transformer(self.attentions_lowlevel)(x, low_context)
        return x


class DownBlock(CaptionAttention):
    """Resnets, each followed by attention to the captions (if `make` is given), then a downsample."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        layers: int,
        text_features: int,
        fusion: Fusion,
        make: Callable[..., Transformer] | None,
        downsample_padding: int | None,
        resnet: Callable[[int, int], ResnetBlock],
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        self.compute = compute
        self.resnets = nnx.List([resnet(in_features if i == 0 else out_features, out_features) for i in range(layers)])
        self.attended = make is not None
        if make is not None:
            self.build_attentions(layers, out_features, text_features, fusion, make)
        if downsample_padding is not None:
            self.downsamplers = nnx.List(
                [Downsample(out_features, padding=downsample_padding, compute=compute, rngs=rngs)]
            )

    def __call__(
        self,
        x: Array,
        time: Array,
        high: TextEmbedding | None,
        low: TextEmbedding | None,
        *,
        path: str,
        layers: int | None = None,
    ) -> tuple[Array, list[Array]]:
        """Returns the block's output and the features of every layer (b h w c, at decreasing sizes).

        With `layers` only the first `layers` layers are computed, without downsampling. `path` is as in `attend`.
        """
        features = []
        for i, resnet in enumerate(self.resnets[:layers]):
            x = run(resnet, x, time, compute=self.compute)
            if self.attended:
                x = self.attend(i, x, high, low, path=path)
            features.append(x)
        if hasattr(self, "downsamplers") and layers is None:
            x = self.downsamplers[0](x)
            features.append(x)
        return x, features


class MidBlock(CaptionAttention):
    """Resnet, attention to the captions, resnet."""

    def __init__(
        self,
        features: int,
        *,
        text_features: int,
        fusion: Fusion,
        make: Callable[..., Transformer],
        resnet: Callable[[int, int], ResnetBlock],
        compute: Compute,
    ):
        self.compute = compute
        self.resnets = nnx.List([resnet(features, features) for _ in range(2)])
        self.build_attentions(1, features, text_features, fusion, make)

    def __call__(
        self, x: Array, time: Array, high: TextEmbedding | None, low: TextEmbedding | None, *, path: str
    ) -> Array:
        """The feature map of the same shape, b h w c.

        Args:
          x: b h w c.
          time: b t, from `TimeEmbedding`.
          high, low: the captions, as in `attend`.
          path: as in `attend`.
        """
        x = run(self.resnets[0], x, time, compute=self.compute)
        x = self.attend(0, x, high, low, path=path)
        return run(self.resnets[1], x, time, compute=self.compute)


class UpBlock(nnx.Module):
    """Decoder layers: resnet over stream and skip, attention to the text, then conditional attention (method §4)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        skip_features: list[int],
        *,
        text_features: int,
        make: Callable[..., Transformer],
        attended: bool,
        conditional: bool,
        upsample: bool,
        resnet: Callable[[int, int], ResnetBlock],
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        self.compute = compute
        streams = [in_features] + [out_features] * (len(skip_features) - 1)
        self.resnets = nnx.List(
            [resnet(stream + skip, out_features) for stream, skip in zip(streams, skip_features, strict=True)]
        )
        if attended:
            self.attentions = nnx.List([make(out_features, context_features=text_features) for _ in skip_features])
        if conditional:
            self.pixel_attentions = nnx.List([make(out_features, context_features=skip) for skip in skip_features])
        if upsample:
            self.upsamplers = nnx.List([Upsample(out_features, compute=compute, rngs=rngs)])

    def __call__(
        self,
        x: Array,
        time: Array,
        high: TextEmbedding,
        skips: list[Array],
        residuals: list[Array] | None,
        *,
        path: str,
        first: int = 0,
    ) -> Float[Array, "b h w c"]:
        """Decodes one level or a part of it: one layer per skip, starting with layer `first`.

        `skips` (with the residuals already added) and `residuals` are in the order of the layers. `path` is as in
        `CaptionAttention.attend`.
        """
        for i, skip in enumerate(skips):
            layer = first + i
            x = run(self.resnets[layer], jnp.concatenate(aligned(x, skip), axis=-1), time, compute=self.compute)
            if hasattr(self, "attentions"):
                context = context_at(high, "high", f"{path}.attentions.{layer}")
                x = run(self.attentions[layer], x, context, compute=self.compute)
            if residuals is not None:
                attend = self.pixel_attentions[layer]
                x = conditional_attention(x, residuals[i], attend=attend, compute=self.compute)
        return x

    def upsample(self, x: Array, height: int, width: int) -> Array:
        """The feature map at the size of the next level's skips; unchanged in a block without upsampling."""
        return self.upsamplers[0](x, height, width) if hasattr(self, "upsamplers") else x


def conditional_attention(
    x: Float[Array, "_ h w c"], residual: Float[Array, "_ h w d"], *, attend: Transformer, compute: Compute
) -> Float[Array, "b h w c"]:
    """Lets the frozen decoder attend to the ControlNet's feature of the same size (paper, §3.4; method §4).

    `x` is the query; `residual` gives keys and values.
    """
    return run(attend, x, flatten_tokens(residual), compute=compute)
