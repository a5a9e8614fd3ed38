"""Flash attention on TPUs: JAX's Pallas kernel, extended to sequences and heads of any size and to any mesh.

Dao et al., FlashAttention, 2022 (arXiv:2205.14135).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as pallas
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

# The kernel needs at least 128 queries, keys and features, and only complete blocks.
LANES = 128
# Queries and keys per block; fewer if the sequence is shorter.
BLOCK = 512


def flash_attention(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"], causal: bool
) -> Float[Array, "b n h d"]:
    """softmax(q kᵀ / √d) v with scores, maxima and sums in float32. `causal` masks later keys.

    Within a mesh (`sharding.gathering_kernels`) each device computes its part of the batch.
    """
    kernel = functools.partial(_on_one_device, causal=causal)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        batch = PartitionSpec(mesh.axis_names)
        kernel = jax.shard_map(kernel, mesh=mesh, in_specs=(batch, batch, batch), out_specs=batch, check_vma=False)
    return kernel(q, k, v)


def _on_one_device(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    n, m, d = q.shape[1], k.shape[1], q.shape[-1]
    q_block, k_block = (min(BLOCK, _padded(length, LANES)) for length in (n, m))
    q = _heads_first(q, q_block)
    k, v = _heads_first(k, k_block), _heads_first(v, k_block)
    # Padded keys belong to a segment that contains no query.
    segments = None
    if k.shape[2] != m:
        own = jnp.broadcast_to(jnp.arange(k.shape[2]) >= m, (len(k), k.shape[2])).astype(jnp.int32)
        segments = pallas.SegmentIds(jnp.zeros((len(q), q.shape[2]), jnp.int32), own)
    sizes = pallas.BlockSizes(
        block_q=q_block,
        block_k_major=k_block,
        block_k=k_block,
        block_b=1,
        block_q_major_dkv=q_block,
        block_k_major_dkv=k_block,
        block_k_dkv=k_block,
        block_q_dkv=q_block,
        block_k_major_dq=k_block,
        block_k_dq=k_block,
        block_q_dq=q_block,
    )
    out: Array = pallas.flash_attention(
        q, k, v, segment_ids=segments, causal=causal, sm_scale=d**-0.5, block_sizes=sizes
    )
    return out[:, :, :n, :d].swapaxes(1, 2)


def _heads_first(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b h n2 d2"]:
    """Moves heads before positions and pads with zeros to whole blocks and lanes."""
    _, n, _, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, _padded(n, block) - n), (0, 0), (0, _padded(d, LANES) - d)))
    return x.swapaxes(1, 2)


def _padded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
