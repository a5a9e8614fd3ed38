"""The spatial transformer of Stable Diffusion 1.x and 2.x. XPSR uses it for every attention (method §2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from xpsr_jax.models.attention import attention
from xpsr_jax.models.layers import Compute, aligned, conv, flatten_tokens, group_norm, layer_norm, linear


class KeysValues(NamedTuple):
    """Keys and values of one cross-attention. They depend only on its context."""

    keys: Float[Array, "b m heads d"]
    values: Float[Array, "b m heads d"]


# The context of a transformer: tokens, or their keys and values for each of its layers. The number of samples may
# differ from the feature map's (`layers.aligned`).
Context = Float[Array, "_ _ d"] | tuple[KeysValues, ...]


class Attention(nnx.Module):
    """Multi-head attention. Queries, keys and values have a bias only in the autoencoder."""

    def __init__(
        self,
        features: int,
        heads: int,
        context_features: int | None = None,
        *,
        bias: bool = False,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        context_features = context_features or features
        self.heads, self.kernel = heads, compute.attention
        self.to_q = linear(features, features, bias=bias, compute=compute, rngs=rngs)
        self.to_k = linear(context_features, features, bias=bias, compute=compute, rngs=rngs)
        self.to_v = linear(context_features, features, bias=bias, compute=compute, rngs=rngs)
        self.to_out = linear(features, features, compute=compute, rngs=rngs)

    def _split(self, x: Float[Array, "b n c"]) -> Float[Array, "b n heads d"]:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def project(self, context: Float[Array, "b m c"]) -> KeysValues:
        """Keys and values, split into heads, of a context of m tokens with `context_features` channels."""
        return KeysValues(self._split(self.to_k(context)), self._split(self.to_v(context)))

    def __call__(self, x: Float[Array, "b n c"], context: KeysValues | None = None) -> Float[Array, "b n c"]:
        """Attends from `x` to the context; without a context, to `x` itself."""
        keys, values = self.project(x) if context is None else context
        out = attention(self._split(self.to_q(x)), keys, values, kernel=self.kernel)
        return self.to_out(out.reshape(x.shape))


class FeedForward(nnx.Module):
    """Gated feed-forward: C -> 2 · 4C, value · gelu(gate), 4C -> C, with the exact (erf) GELU."""

    def __init__(self, features: int, *, compute: Compute, rngs: nnx.Rngs):
        self.proj = linear(features, 8 * features, compute=compute, rngs=rngs)
        self.out = linear(4 * features, features, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """The result has the shape of `x`. Each token is computed independently."""
        values, gates = jnp.split(self.proj(x), 2, axis=-1)
        return self.out(values * jax.nn.gelu(gates, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward. Each has a norm before it and a residual around it."""

    def __init__(self, features: int, heads: int, context_features: int, *, compute: Compute, rngs: nnx.Rngs):
        self.norm1 = layer_norm(features, compute=compute, rngs=rngs)
        self.attn1 = Attention(features, heads, compute=compute, rngs=rngs)
        self.norm2 = layer_norm(features, compute=compute, rngs=rngs)
        self.attn2 = Attention(features, heads, context_features, compute=compute, rngs=rngs)
        self.norm3 = layer_norm(features, compute=compute, rngs=rngs)
        self.ff = FeedForward(features, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "_ n c"], context: KeysValues) -> Float[Array, "b n c"]:
        """Attends from the tokens to themselves, then to the context (method §2).

        Args:
          x: tokens of the feature map.
          context: keys and values from `attn2.project`. `x` and the context may have different numbers of samples
            (`layers.aligned`).
        """
        x = x + self.attn1(self.norm1(x))
        x, *keys_values = aligned(x, *context)
        x = x + self.attn2(self.norm2(x), KeysValues(*keys_values))
        return x + self.ff(self.norm3(x))


class Transformer(nnx.Module):
    """A transformer over the positions of a feature map, with an outer residual (diffusers' Transformer2DModel)."""

    def __init__(
        self,
        features: int,
        heads: int,
        context_features: int,
        *,
        layers: int = 1,
        groups: int,
        linear_projection: bool = False,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        def projection() -> nnx.Module:
            if linear_projection:
                return linear(features, features, compute=compute, rngs=rngs)
            return conv(features, features, 1, compute=compute, rngs=rngs)

        self.norm = group_norm(features, groups, epsilon=1e-6, compute=compute, rngs=rngs)
        self.proj_in = projection()
        self.transformer_blocks = nnx.List(
            [TransformerBlock(features, heads, context_features, compute=compute, rngs=rngs) for _ in range(layers)]
        )
        self.proj_out = projection()

    def project_context(self, context: Float[Array, "b m c"]) -> tuple[KeysValues, ...]:
        """Keys and values of each layer's cross-attention to `context`."""
        return tuple(block.attn2.project(context) for block in self.transformer_blocks)

    def __call__(self, x: Float[Array, "_ h w c"], context: Context) -> Float[Array, "b h w c"]:
        """Attends from `x` to the context. The numbers of samples may differ (`layers.aligned`)."""
        projected = context if isinstance(context, tuple) else self.project_context(context)
        y = flatten_tokens(self.proj_in(self.norm(x)))
        for block, keys_values in zip(self.transformer_blocks, projected, strict=True):
            y = block(y, keys_values)
        x, y = aligned(x, self.proj_out(y.reshape(-1, *x.shape[1:])))
        return x + y
