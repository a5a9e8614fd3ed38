"""3x3 convolutions by Winograd's F(2x2, 3x3), for CPUs: 4 multiplications a pixel in place of 9.

S. Winograd, Arithmetic Complexity of Computations, 1980. The transforms are those of Lavin and Gray, Fast Algorithms
for Convolutional Neural Networks, 2016 (arXiv:1509.09308), section 4.1. With the many features of Stable Diffusion's
convolutions XLA for CPUs is 1.2 to 2.7 times as fast so. Kernels, transformed once, take 16/9 of the memory.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

M = TypeVar("M", bound=nnx.Module)

# Features from which on the sixteen products outweigh the transforms (docs/understand/speed.md).
FEATURES = 256
# Tiles that are transformed at once; their sixteen matrices stay in cache, and memory flat in the picture's size.
TILES = 512

# The kernel's transform; input and output have theirs below, in sums and differences.
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


class WinogradConv(nnx.Module):
    """A 3x3 convolution at stride 1, within a border of zeros, with bias; for inference in the parameters' dtype.

    Attributes:
      kernel: as `transform_kernel` makes it.
      bias: of each output feature.
    """

    def __init__(self, conv: nnx.Conv):
        assert conv.bias is not None
        self.kernel = nnx.Param(transform_kernel(conv.kernel[...]))
        self.bias = nnx.Param(conv.bias[...])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """What the convolution that it replaces gives, to rounding; d is the number of output features."""
        return winograd_conv(x, self.kernel[...]) + self.bias[...]


def with_winograd(network: M) -> M:
    """The network for inference on a CPU: each convolution that gains by it is replaced by a `WinogradConv`.

    The given network stays as it is; the two share every other parameter. The new one has no kernels to train or save.
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
    """G kernel Gᵀ, for each pair of features."""
    both = jnp.asarray(np.kron(_G, _G))
    return jnp.dot(both, kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def winograd_conv(x: Float[Array, "b h w c"], kernel: Float[Array, "16 c d"]) -> Float[Array, "b h w d"]:
    """The convolution of `x`, within a border of zeros, with a kernel of `transform_kernel`."""
    b, h, w, _ = x.shape
    columns = -(-w // 2)  # of tiles: 2 x 2 results of 4 x 4 inputs
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
