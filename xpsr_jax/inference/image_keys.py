"""The random numbers of an image. They depend on the seed and its pixels, not on its name, position or neighbours."""

import functools
import hashlib

import jax
import numpy as np
from jaxtyping import Array, UInt8, UInt32

from xpsr_jax.errors import UserError
from xpsr_jax.serialisation import Range

SEEDS = Range(-(2**63), 2**64 - 1)


def content_digest(image: UInt8[np.ndarray, "h w 3"]) -> UInt32[np.ndarray, "2"]:
    """The first 64 bits of the SHA-256 of an image's shape and pixels."""
    digest = hashlib.sha256(np.array(image.shape, "<i8").tobytes() + image.tobytes()).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)


def image_key(
    seed: UInt32[Array, "2"] | UInt32[np.ndarray, "2"], digest: UInt32[Array, "2"] | UInt32[np.ndarray, "2"]
) -> Array:
    """The random key of one image, from the seed and the image's content."""
    key = jax.random.key(0, impl="threefry2x32")
    return functools.reduce(jax.random.fold_in, [*seed, *digest], key)


def seed_words(seed: int) -> UInt32[np.ndarray, "2"]:
    """Splits a 64-bit seed, signed or not, into the two words for `image_key`.

    Raises UserError if the seed is outside of `SEEDS`.
    """
    if problem := SEEDS.wrong(seed):
        raise UserError(f"seed must be {problem}, not {seed}")
    return np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32)
