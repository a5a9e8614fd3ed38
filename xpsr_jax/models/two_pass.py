"""Attention that stores no scores, in plain JAX, for compilers that fuse a matrix product into another one's operand.

XLA for TPUs does. Of softmax(q kᵀ) v as usually written it stores every score in float32, because the rows' maxima must
be known first. But what is elementwise in one product and an operand of the next becomes one fusion with both. So the
scores are computed twice: for their rows' maxima alone, and then, less these, exponentiated and multiplied by the
values. A column of ones beside the values sums the weights in that product. docs/understand/pods.md has what this
saves.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

# By this name a block that is recomputed in the backward pass stores what the gradient needs of the forward pass.
ATTENDED = "attended"


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def two_pass_attention(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], causal: bool
) -> Float[Array, "b n h d"]:
    """softmax(q kᵀ / √d) v, with scores, maxima and sums in float32. `causal` masks later keys."""
    return _forward(q, k, v, causal)[0]


def _forward(q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, tuple[Array, ...]]:
    positions = jnp.arange(q.shape[1]) if causal else None
    maxima = scores(q, k, positions).max(-1, keepdims=True)
    # The barrier keeps the compiler from seeing that both passes compute the same scores, which it would then store.
    again, maxima = jax.lax.optimization_barrier((q, maxima))
    weights = jnp.exp(scores(again, k, positions) - maxima).astype(v.dtype)
    counted = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    sums = jnp.einsum("bhnm,bmhd->bhnd", weights, counted, preferred_element_type=jnp.float32)
    out = checkpoint_name((sums[..., :-1] / sums[..., -1:]).swapaxes(1, 2).astype(v.dtype), ATTENDED)
    return out, (q, k, v, out, checkpoint_name(maxima + jnp.log(sums[..., -1:]), ATTENDED))


def _backward(causal: bool, residuals: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v. The weights are stored once, in the compute dtype; all else is fused again."""
    q, k, v, out, log_sums = residuals
    positions = jnp.arange(q.shape[1]) if causal else None

    def weights(q: Array) -> Array:
        return jnp.exp(scores(q, k, positions) - log_sums).astype(v.dtype)

    # One result after the other, each from scores of its own, which are not the forward pass's either.
    again, d_out = jax.lax.optimization_barrier((q, d_out))
    d_v = jnp.einsum("bhnm,bnhd->bmhd", weights(again), d_out)
    again, d_out, d_v = jax.lax.optimization_barrier((again, d_out, d_v))
    stored = jax.lax.optimization_barrier(weights(again))
    mean = jnp.einsum("bnhd,bnhd->bhn", d_out, out, preferred_element_type=jnp.float32)[..., None]

    def d_scores(d_out: Array) -> Array:
        d_weights = jnp.einsum("bnhd,bmhd->bhnm", d_out, v, preferred_element_type=jnp.float32)
        scaled: Array = stored * (d_weights - mean) * q.shape[-1] ** -0.5
        return scaled.astype(q.dtype)

    d_q = jnp.einsum("bhnm,bmhd->bnhd", d_scores(d_out), k)
    d_out, d_q = jax.lax.optimization_barrier((d_out, d_q))
    return d_q, jnp.einsum("bhnm,bnhd->bmhd", d_scores(d_out), q), d_v


two_pass_attention.defvjp(_forward, _backward)


def scores(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], positions: Int[Array, "n"] | None
) -> Float[Array, "b h n m"]:
    """q kᵀ / √d in float32; with the queries' positions, -∞ for later keys."""
    # Scaled after the product: in bfloat16, scaled queries would be rounded once more (3 times the error).
    product: Array = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if positions is None:
        return product
    return jnp.where(positions[:, None] >= jnp.arange(k.shape[1]), product, -jnp.inf)
