"""3x3 convolutions by Winograd's F(2x2, 3x3), for CPUs: 4 multiplications per pixel instead of 9.

S. Winograd, Arithmetic Complexity of Computations, 1980. The transforms are those of Lavin and Gray, Fast Algorithms
for Convolutional Neural Networks, 2016 (arXiv:1509.09308), section 4.1. Stable Diffusion's convolutions have many
features, and XLA for CPUs computes them 1.2 to 2.7 times as fast in this way. Kernels are transformed once and then
take 16/9 of the memory.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

M = TypeVar("M", bound=nnx.Module)

# The smallest number of features for which this method is faster (docs/understand/speed.md).
FEATURES = 256
# Tiles that are transformed together. Their sixteen matrices stay in cache, and memory does not grow with the picture.
TILES = 512

# The kernel's transform. Those of input and output are the functions below, with sums and differences.
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


class WinogradConv(nnx.Module):
    """A 3x3 convolution with stride 1, zero padding and bias. For inference, in the parameters' dtype.

    Attributes:
      kernel: the result of `transform_kernel`.
      bias: one number per output feature.
    """

    def __init__(self, conv: nnx.Conv):
        assert conv.bias is not None
        self.kernel = nnx.Param(transform_kernel(conv.kernel[...]))
        self.bias = nnx.Param(conv.bias[...])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """The result of the replaced convolution, up to rounding; d is the number of output features."""
        return winograd_conv(x, self.kernel[...]) + self.bias[...]


def with_winograd(network: M) -> M:
    """A network for inference on a CPU, with a `WinogradConv` in place of each convolution that becomes faster.

    The given network is unchanged and shares all other parameters with the new one. The new one cannot be trained or
    saved, because it has only transformed kernels.
    """
    replaced: M = nnx.recursive_map(
        lambda _, node: WinogradConv(node) if isinstance(node, nnx.Conv) and _gains(node) else node, network
    )
    return replaced


def _gains(module: nnx.Conv) -> bool:
    same_size = module.strides in (1, (1, 1)) and module.padding == ((1, 1), (1, 1))
    return module.kernel_shape[:2] == (3, 3) and same_size and min(module.kernel_shape[2:]) >= FEATURES


@jax.jit
def transform_kernel(kernel: Float[Array, "3 3 c d"]) -> Float[Array, "16 c d"]:
    """G kernel Gᵀ for each pair of features."""
    both = jnp.asarray(np.kron(_G, _G))
    return jnp.dot(both, kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def winograd_conv(x: Float[Array, "b h w c"], kernel: Float[Array, "16 c d"]) -> Float[Array, "b h w d"]:
    """The convolution of `x`, padded with zeros, with a kernel from `transform_kernel`."""
    b, h, w, _ = x.shape
    columns = -(-w // 2)  # A tile is 2 x 2 results from 4 x 4 inputs.
    rows = min(max(TILES // (b * columns), 1), -(-h // 2))
    strips = -(-h // (2 * rows))
    x = jnp.pad(x, ((0, 0), (1, 2 * rows * strips - h + 1), (1, 2 * columns - w + 1), (0, 0)))
    if strips == 1:
        return _strip(x, kernel)[:, :h, :w]

    def strip(start: Array) -> Array:
        return _strip(jax.lax.dynamic_slice_in_dim(x, start, 2 * rows + 2, axis=1), kernel)

    out: Array = jax.lax.map(strip, 2 * rows * jnp.arange(strips))
    return out.swapaxes(0, 1).reshape(b, 2 * rows * strips, 2 * columns, -1)[:, :h, :w]


def _strip(x: Float[Array, "b h w c"], kernel: Float[Array, "16 c d"]) -> Float[Array, "b h-2 w-2 d"]:
    b, h, w, c = x.shape
    rows, columns = h // 2 - 1, w // 2 - 1
    lines = _input_transform([x[:, i : i + 2 * rows : 2] for i in range(4)])
    tiles = [_input_transform([line[:, :, j : j + 2 * columns : 2] for j in range(4)]) for line in lines]
    products = jnp.stack([tile for line in tiles for tile in line]).reshape(16, -1, c) @ kernel
    products = products.reshape(4, 4, b, rows, columns, -1)
    pixels = [_output_transform(line) for line in _output_transform(products)]
    return jnp.stack([jnp.stack(line, axis=3) for line in pixels], axis=2).reshape(b, 2 * rows, 2 * columns, -1)


def _input_transform(x: list[Array]) -> list[Array]:
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _output_transform(x: Array) -> list[Array]:
    return [x[0] + x[1] + x[2], x[1] - x[2] - x[3]]
