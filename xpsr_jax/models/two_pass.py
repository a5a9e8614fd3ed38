"""Attention in plain JAX that stores no scores, if the compiler fuses a matrix product into another one's operand.

XLA for TPUs does this. For softmax(q kᵀ) v in its usual form XLA stores every score in float32, because it needs the
maximum of each row first. But it can fuse a product, elementwise operations on it and the next product. So the scores
are computed twice. The first pass computes the maxima of the rows. The second pass subtracts them, exponentiates, and
multiplies by the values. A column of ones next to the values gives the sums of the weights in the same product.
docs/understand/pods.md has measurements.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

# Under this name, a block that is recomputed in the backward pass stores the forward results that gradients need.
ATTENDED = "attended"


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def two_pass_attention(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], causal: bool
) -> Float[Array, "b n h d"]:
    """softmax(q kᵀ / √d) v, with scores, maxima and sums in float32. `causal` masks later keys."""
    return _forward(q, k, v, causal)[0]


def _forward(q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, tuple[Array, ...]]:
    positions = jnp.arange(q.shape[1]) if causal else None
    maxima = checkpoint_name(scores(q, k, positions).max(-1, keepdims=True), ATTENDED)
    # Both passes compute the same scores. The barrier hides this from the compiler, which would store them otherwise.
    again, maxima = jax.lax.optimization_barrier((q, maxima))
    weights = jnp.exp(scores(again, k, positions) - maxima).astype(v.dtype)
    counted = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    sums = jnp.einsum("bhnm,bmhd->bhnd", weights, counted, preferred_element_type=jnp.float32)
    out = checkpoint_name((sums[..., :-1] / sums[..., -1:]).swapaxes(1, 2).astype(v.dtype), ATTENDED)
    return out, (q, k, v, out, maxima, checkpoint_name(maxima + jnp.log(sums[..., -1:]), ATTENDED))


def _backward(causal: bool, residuals: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v. The weights are stored once (`_packed`); all other operations are fused."""
    q, k, v, out, maxima, log_sums = residuals
    positions = jnp.arange(q.shape[1]) if causal else None

    # The results are computed in sequence. Each recomputes its scores and does not reuse those of the forward pass.
    again, d_out = jax.lax.optimization_barrier((q, d_out))
    weights = jnp.exp(scores(again, k, positions) - log_sums).astype(v.dtype)
    d_v = jnp.einsum("bhnm,bnhd->bmhd", weights, d_out)
    again, d_out, d_v = jax.lax.optimization_barrier((again, d_out, d_v))
    stored = jax.lax.optimization_barrier(_packed(scores(again, k, positions) - maxima, v.dtype))
    largest = jnp.exp(maxima - log_sums)
    mean = jnp.einsum("bnhd,bnhd->bhn", d_out, out, preferred_element_type=jnp.float32)[..., None]

    def d_scores(d_out: Array) -> Array:
        d_weights = jnp.einsum("bnhd,bmhd->bhnm", d_out, v, preferred_element_type=jnp.float32)
        scaled: Array = _unpacked(stored) * (d_weights - mean) * (largest * q.shape[-1] ** -0.5)
        return scaled.astype(q.dtype)

    d_q = jnp.einsum("bhnm,bmhd->bnhd", d_scores(d_out), k)
    d_out, d_q = jax.lax.optimization_barrier((d_out, d_q))
    return d_q, jnp.einsum("bhnm,bnhd->bmhd", d_scores(d_out), q), d_v


def _packed(below: Float[Array, "b h n m"], dtype: DTypeLike) -> Shaped[Array, "b h n m"]:
    """Weights divided by the largest of their row, given the differences of their scores.

    For a compute dtype of 16 bits, their square roots in 8 bits, with steps of 1/255: half the bytes are written, and
    read twice. The gradients of q and k then differ by 0.5 % from those in float32, instead of 0.3 %.
    """
    if jnp.dtype(dtype).itemsize > 2:
        return jnp.exp(below)
    return jnp.round(255 * jnp.exp(below / 2)).astype(jnp.uint8)


def _unpacked(stored: Shaped[Array, "b h n m"]) -> Float[Array, "b h n m"]:
    if stored.dtype != jnp.uint8:
        return stored
    return (stored.astype(jnp.float32) / 255) ** 2


two_pass_attention.defvjp(_forward, _backward)


def scores(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], positions: Int[Array, "n"] | None
) -> Float[Array, "b h n m"]:
    """q kᵀ / √d in float32; with the queries' positions, -∞ for later keys."""
    # Scaled after the product. In bfloat16, scaled queries would be rounded once more (3 times the error).
    product: Array = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if positions is None:
        return product
    return jnp.where(positions[:, None] >= jnp.arange(k.shape[1]), product, -jnp.inf)
