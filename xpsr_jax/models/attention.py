"""Softmax attention: one function with several kernels, which are equal up to rounding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xpsr_jax.models.configs import Kernel
from xpsr_jax.models.flash import flash_attention
from xpsr_jax.models.two_pass import scores, two_pass_attention

# Queries per chunk; 128 to 1024 are about equally fast.
CHUNK = 256
# Scores per head above which chunks are faster on a CPU. Below, everything stays in cache.
CHUNKED = 2**13
# Scores per head above which a TPU is faster if they are not stored.
TWICE = 2**18
# The kernel of "auto" on a TPU.
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

    Args:
      kernel: "plain" materialises all scores. "chunked" materialises the scores of `CHUNK` queries of one head at a
        time, and recomputes them in the backward pass. "two_pass" computes the scores twice and stores none, if the
        compiler fuses like XLA for TPUs. "flash" is JAX's fused TPU kernel. These two are "plain" for few scores.
        "cudnn" is the fused GPU kernel (float16 or bfloat16, d a multiple of 8, at most 128). "auto" chooses by backend
        and size.
      causal: mask later keys.
    """
    if kernel == "auto":
        kernel = automatic_kernel(q, k)
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    if kernel == "flash" and q.shape[1] * k.shape[1] > TWICE:
        return flash_attention(q, k, v, causal)
    if kernel == "two_pass" and q.shape[1] * k.shape[1] > TWICE:
        return two_pass_attention(q, k, v, causal)
    if kernel == "chunked":
        return _chunked(q, k, v, causal)
    return _plain(q, k, v, jnp.arange(q.shape[1]) if causal else None)


def automatic_kernel(q: Array | jax.ShapeDtypeStruct, k: Array | jax.ShapeDtypeStruct) -> Kernel:
    """The kernel that "auto" chooses for queries and keys of these shapes and types on the current devices."""
    if jax.default_backend() == "gpu":
        fused = q.dtype in (jnp.float16, jnp.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
        return "cudnn" if fused else "plain"
    if jax.default_backend() == "tpu":
        return TPU_KERNEL
    return "chunked" if q.shape[1] * k.shape[1] > CHUNKED else "plain"


def _plain(q: Array, k: Array, v: Array, positions: Array | None) -> Array:
    """Attention with whole score matrices. With the queries' `positions` a causal mask is used."""
    weights = jax.nn.softmax(scores(q, k, positions), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _chunked(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """One head at a time: XLA for CPUs takes half as long for single matrix products as for batched ones."""
    b, n, h, d = q.shape
    length = min(CHUNK, n)
    chunks = -(-n // length)
    q, k, v = (x.swapaxes(1, 2).reshape(b * h, -1, d) for x in (q, k, v))
    q = jnp.pad(q, ((0, 0), (0, chunks * length - n), (0, 0))).reshape(b * h, chunks, length, d)

    def head(operands: tuple[Array, Array, Array]) -> Array:
        queries, keys, values = operands

        @jax.checkpoint
        def chunk(operands: tuple[Array, Array]) -> Array:
            queries, start = operands
            mask = (start + jnp.arange(length))[:, None] >= jnp.arange(k.shape[1]) if causal else None
            return _one_head(queries, keys, values, mask)

        attended: Array = jax.lax.map(chunk, (queries, jnp.arange(chunks) * length))
        return attended

    out: Array = jax.lax.map(head, (q, k, v))
    return out.reshape(b, h, -1, d).swapaxes(1, 2)[:, :n]


def _one_head(
    q: Float[Array, "n d"], k: Float[Array, "m d"], v: Float[Array, "m d"], mask: Bool[Array, "n m"] | None
) -> Float[Array, "n d"]:
    """Attention of one head. The product is divided by the sum of the weights, as it has fewer entries than these."""
    scores = jnp.einsum("nd,md->nm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    # Subtracting any number gives the same result. So the maximum needs no gradient.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("nm,md->nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)
