"""Checks that a converted network equals its source: the same tensors and the same results."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from xpsr_jax.errors import UserError
from xpsr_jax.models.autoencoder import Autoencoder
from xpsr_jax.models.configs import UNetConfig
from xpsr_jax.models.controlnet import ControlNet
from xpsr_jax.models.layers import Compute
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.models.text_encoder import TextEncoder
from xpsr_jax.weights.networks import AnyNetwork, Network, Weights, checked, load_network, open_folder
from xpsr_jax.weights.tensors import contiguous


def verify_network(network: Network, source: Weights, folder: Path, *, dtype: DTypeLike | None = None) -> None:
    """Reads the source and the converted folder again, and compares them.

    Every tensor is compared bit for bit, after a cast to `dtype` (None: no cast). The outputs of both networks for a
    small random input are compared in the same way.

    Raises UserError naming the differences. A difference means that a disk, the memory or this program is broken.
    """
    _, before = checked(network, source)
    config, after = checked(network, open_folder(network, folder))
    differing = [path for path, tensor in before.items() if not _same(tensor.read(), after[path].read(), dtype)]
    if differing:
        raise UserError(f"{folder}: these tensors differ from the source: {', '.join(differing)}; convert it again")
    compute = Compute(param_dtype=jnp.dtype(dtype or jnp.float32))
    first = _compute(load_network(network, source, config=config, compute=compute))
    second = _compute(load_network(network, folder, config=config, compute=compute))
    if not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
        raise UserError(f"{folder}: the network's output differs from that of {source.where}; convert it again")


def _same(before: np.ndarray, after: np.ndarray, dtype: DTypeLike | None) -> bool:
    before = contiguous(before, dtype)
    return before.dtype == after.dtype and before.tobytes() == contiguous(after).tobytes()


def _compute(module: AnyNetwork) -> list[np.ndarray]:
    """All outputs of a network for a small random input. It is not compiled, which would take minutes."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    outputs: object
    if isinstance(module, TextEncoder):
        shape = 1, module.config.max_position_embeddings
        outputs = module(jnp.asarray(rng.integers(0, module.config.vocab_size, shape), jnp.int32))
    elif isinstance(module, RRDBNet):
        size = 4 * module.config.unshuffle
        outputs = module(jnp.abs(normal(1, size, size, 3)) % 1)
    elif isinstance(module, Autoencoder):
        size = 2 ** len(module.config.block_out_channels)
        outputs = (
            module.moments(normal(1, size, size, module.config.in_channels)),
            module.decode(normal(1, 2, 2, module.config.latent_channels)),
        )
    else:
        config = module.config
        size = 2 ** (len(config.block_out_channels) - 1)
        latents, timesteps = normal(1, size, size, config.in_channels), jnp.array([500])
        text = normal(1, 4, config.cross_attention_dim)
        if isinstance(module, ControlNet):
            pixels = size * 2 ** (len(module.config.conditioning_embedding_out_channels) - 1)
            features = module.encode_image(jnp.abs(normal(1, pixels, pixels, module.config.conditioning_channels)) % 1)
            outputs = features, module(latents, timesteps, text, text, features)
        else:
            outputs = module(latents, timesteps, text, *_residuals(module.config, size, normal))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(outputs)]


def _residuals(
    config: UNetConfig, size: int, normal: Callable[..., jax.Array]
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Random residuals like a ControlNet's: one for conv_in; for each level one per layer and one for the halving."""
    last = len(config.block_out_channels) - 1
    sizes = [size]
    for level in range(last + 1):
        sizes += [size >> level] * config.layers_per_block + [size >> (level + 1)] * (level < last)
    residuals = tuple(normal(1, s, s, c) for s, c in zip(sizes, config.feature_channels, strict=True))
    return residuals, normal(1, sizes[-1], sizes[-1], config.block_out_channels[-1])
