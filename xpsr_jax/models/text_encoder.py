"""The CLIP text encoder of Stable Diffusion (transformers' CLIPTextModel; method §1)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from xpsr_jax.models.attention import attention
from xpsr_jax.models.configs import TextEncoderConfig
from xpsr_jax.models.layers import Compute, layer_norm, linear


class _Embeddings(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        def table(entries: int) -> nnx.Embed:
            return nnx.Embed(
                entries,
                config.hidden_size,
                embedding_init=jax.nn.initializers.normal(0.02),
                dtype=compute.dtype,
                param_dtype=compute.param_dtype,
                rngs=rngs,
            )

        self.token_embedding = table(config.vocab_size)
        self.position_embedding = table(config.max_position_embeddings)

    def __call__(self, token_ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        return self.token_embedding(token_ids) + self.position_embedding(jnp.arange(token_ids.shape[1]))


class _SelfAttention(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        d = config.hidden_size
        self.heads, self.kernel = config.num_attention_heads, compute.attention
        self.q_proj = linear(d, d, compute=compute, rngs=rngs)
        self.k_proj = linear(d, d, compute=compute, rngs=rngs)
        self.v_proj = linear(d, d, compute=compute, rngs=rngs)
        self.out_proj = linear(d, d, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        q, k, v = (
            project(x).reshape(*x.shape[:2], self.heads, -1) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attention(q, k, v, kernel=self.kernel, causal=True).reshape(x.shape))


class _FeedForward(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = linear(config.hidden_size, config.intermediate_size, compute=compute, rngs=rngs)
        self.fc2 = linear(config.intermediate_size, config.hidden_size, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        h = self.fc1(x)
        return self.fc2(h * jax.nn.sigmoid(1.702 * h) if self.quick else jax.nn.gelu(h, approximate=False))


class _Layer(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        self.layer_norm1 = layer_norm(config.hidden_size, epsilon=config.layer_norm_eps, compute=compute, rngs=rngs)
        self.self_attn = _SelfAttention(config, compute=compute, rngs=rngs)
        self.layer_norm2 = layer_norm(config.hidden_size, epsilon=config.layer_norm_eps, compute=compute, rngs=rngs)
        self.mlp = _FeedForward(config, compute=compute, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Encoder(nnx.Module):
    def __init__(self, config: TextEncoderConfig, *, compute: Compute, rngs: nnx.Rngs):
        self.layers = nnx.List([_Layer(config, compute=compute, rngs=rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        for layer in self.layers:
            x = layer(x)
        return x


class TextEncoder(nnx.Module):
    """Embeds a caption's tokens, with a causal mask and without a padding mask."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs, compute: Compute = Compute()):  # noqa: B008
        self.config = config
        self.embeddings = _Embeddings(config, compute=compute, rngs=rngs)
        self.encoder = _Encoder(config, compute=compute, rngs=rngs)
        self.final_layer_norm = layer_norm(
            config.hidden_size, epsilon=config.layer_norm_eps, compute=compute, rngs=rngs
        )

    def __call__(self, token_ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """The last hidden state after the final norm, for token ids padded to 77."""
        normed: Array = self.final_layer_norm(self.encoder(self.embeddings(token_ids)))
        return normed
