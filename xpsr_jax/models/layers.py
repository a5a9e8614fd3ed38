"""Layers shared by all networks: convolutions, linear layers and norms, initialised and computed as in PyTorch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.nn import initializers
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from xpsr_jax.models.configs import Kernel


@dataclass(frozen=True)
class Compute:
    """How a network computes. Results depend on it only by rounding.

    Attributes:
      dtype: type of activations. Norm statistics and softmax are always float32.
      param_dtype: type of stored parameters.
      attention: kernel of `attention.attention`; "auto" chooses by backend and size.
      remat: the backward pass recomputes each block from the results of its matrix products and convolutions, instead
        of storing all activations.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    attention: Kernel = "auto"
    remat: bool = False


def _promote_and_gather(arrays: Any, /, *, dtype: DTypeLike | None = None, inexact: bool = True) -> Any:
    """Casts input, kernel and bias. Within a mesh (`sharding.gathering_kernels`) it also gathers a sharded kernel.

    Otherwise the compiler may propagate the kernel's sharding to the activations. Where features become heads, it
    would then have to copy whole activations.
    """
    inputs, kernel, bias = promote_dtype(arrays, dtype=dtype, inexact=inexact)
    if jax.sharding.get_abstract_mesh().empty:
        return inputs, kernel, bias
    return inputs, _whole(kernel), bias


@jax.custom_vjp
def _whole(kernel: Array) -> Array:
    whole: Array = jax.lax.with_sharding_constraint(kernel, PartitionSpec())
    return whole


# The gradient need not be gathered. The training step determines its sharding.
_whole.defvjp(lambda kernel: (_whole(kernel), None), lambda _, gradient: (gradient,))


# PyTorch's default: kernel and bias uniform in ±1/sqrt(fan_in) (method §5).
_torch_kernel_init = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _torch_bias_init(fan_in: int) -> Callable[..., Array]:
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def conv(
    in_features: int,
    out_features: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    zero: bool = False,
    compute: Compute,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution with bias, (b h w in) -> (b h' w' out).

    `padding` applies to both axes: one number for both sides, or (before, after). None keeps the size at stride 1.
    `zero` initialises kernel and bias with zeros.
    """
    if padding is None:
        padding = size // 2
    before, after = (padding, padding) if isinstance(padding, int) else padding
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        strides=stride,
        padding=((before, after), (before, after)),
        kernel_init=initializers.zeros if zero else _torch_kernel_init,
        bias_init=initializers.zeros if zero else _torch_bias_init(in_features * size * size),
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        promote_dtype=_promote_and_gather,
        rngs=rngs,
    )


def linear(in_features: int, out_features: int, *, bias: bool = True, compute: Compute, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer, (... in) -> (... out)."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=bias,
        kernel_init=_torch_kernel_init,
        bias_init=_torch_bias_init(in_features),
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        promote_dtype=_promote_and_gather,
        rngs=rngs,
    )


def group_norm(features: int, groups: int, *, epsilon: float, compute: Compute, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation. The variance is computed around the mean, because E[x²] - E[x]² loses precision."""
    return nnx.GroupNorm(
        features,
        num_groups=groups,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        rngs=rngs,
    )


def layer_norm(features: int, *, epsilon: float = 1e-5, compute: Compute, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation over the last axis."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        rngs=rngs,
    )


def flatten_tokens(x: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
    """A feature map as tokens, row by row."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def aligned(*arrays: Float[Array, "_ ..."]) -> list[Float[Array, "b ..."]]:
    """The arrays with the sample count of the largest one. Each sample of a smaller array is repeated in place.

    In guidance, the two versions of a sample are neighbours in the batch. With this function, the layers before their
    first difference are computed once for both.
    """
    batch = max(array.shape[0] for array in arrays)
    return [x if x.shape[0] == batch else jnp.repeat(x, batch // x.shape[0], axis=0) for x in arrays]


def nearest_resize(x: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b {height} {width} c"]:
    """Nearest-neighbour resize with index floor(i · in / out), as in PyTorch.

    `jax.image.resize` uses half-pixel centres instead.
    """
    _, h, w, _ = x.shape
    if (height, width) == (2 * h, 2 * w):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, (jnp.arange(height) * h) // height][:, :, (jnp.arange(width) * w) // width]


def timestep_embedding(
    timesteps: Int[Array, "b"] | Float[Array, "b"],
    features: int,
    *,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0,
) -> Float[Array, "b {features}"]:
    """Sinusoidal embedding of timesteps in float32 (method §2): [cos, sin] if flipped, otherwise [sin, cos]."""
    half = features // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    halves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(halves, axis=-1)
