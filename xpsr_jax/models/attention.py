"""Softmax attention: one function, several kernels, equal up to rounding."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xpsr_jax.models.two_pass import scores, two_pass_attention

Kernel = Literal["auto", "plain", "chunked", "two_pass", "cudnn"]

# Queries per chunk: its float32 scores against 4096 keys fit in a core's L2 cache.
CHUNK = 128
# Scores a head from which on a TPU gains by computing them twice.
TWICE = 2**18
# What "auto" is on a TPU.
TPU_KERNEL: Kernel = "two_pass"


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    *,
    kernel: Kernel = "auto",
    causal: bool = False,
) -> Float[Array, "b n h d"]:
    """softmax(q kᵀ / √d) v, with the softmax in float32.

    `kernel`: "plain" materialises all scores; "chunked" those of `CHUNK` queries at a time (and recomputes them in the
    backward pass); "two_pass" computes the scores twice and stores none of them, if the compiler fuses as XLA does for
    TPUs, and is "plain" where they are few; "cudnn" is the fused GPU kernel (float16 or bfloat16, d a multiple of 8, at
    most 128); "auto" chooses by backend and size. `causal` masks later keys.
    """
    if kernel == "auto":
        kernel = _automatic(q, k)
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    if kernel == "two_pass" and q.shape[1] * k.shape[1] > TWICE:
        return two_pass_attention(q, k, v, causal)
    if kernel == "chunked" and q.shape[1] > CHUNK:
        return _chunked(q, k, v, causal)
    return _plain(q, k, v, jnp.arange(q.shape[1]) if causal else None)


def _automatic(q: Array, k: Array) -> Kernel:
    if jax.default_backend() == "gpu":
        fused = q.dtype in (jnp.float16, jnp.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
        return "cudnn" if fused else "plain"
    if jax.default_backend() == "tpu":
        return TPU_KERNEL
    # Under about a million scores a head everything stays in cache and chunks only add overhead.
    return "chunked" if q.shape[1] * k.shape[1] > 2**20 else "plain"


def _plain(q: Array, k: Array, v: Array, positions: Array | None) -> Array:
    """Attention of whole score matrices; `positions` of the queries switch the causal mask on."""
    weights = jax.nn.softmax(scores(q, k, positions), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _chunked(q: Array, k: Array, v: Array, causal: bool) -> Array:
    b, n, h, d = q.shape
    chunks = -(-n // CHUNK)
    q = jnp.pad(q, ((0, 0), (0, chunks * CHUNK - n), (0, 0), (0, 0)))
    q = q.reshape(b, chunks, CHUNK, h, d).swapaxes(0, 1)

    @jax.checkpoint
    def one(chunk: tuple[Array, Array]) -> Array:
        queries, start = chunk
        return _plain(queries, k, v, start + jnp.arange(CHUNK) if causal else None)

    out = jax.lax.map(one, (q, jnp.arange(chunks) * CHUNK))
    return out.swapaxes(0, 1).reshape(b, chunks * CHUNK, h, d)[:, :n]
