"""Embeddings of captions on disk (`data.embeddings` reads them)."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt64

from xpsr_jax.data.captions import Caption
from xpsr_jax.data.embeddings import DESCRIPTION, KEYS, keys_of, shard_name
from xpsr_jax.data.examples import Tokenizer, tokenize_caption
from xpsr_jax.json_files import write_json
from xpsr_jax.models.text_encoder import TextEncoder
from xpsr_jax.preparation.pieces import Outcome

# Captions in a file: 236 MB in float32 at CLIP's size.
ROWS = 1024
_BATCH = 64


@dataclass(frozen=True)
class WriteEmbeddings:
    """Writes the embeddings of some captions to one file.

    Attributes:
      ids: tokens of all captions, in the order of their keys.
      encode: token ids to embeddings.
    """

    ids: Int[np.ndarray, "n 77"]
    encode: Callable[[Int[Array, "b 77"]], Float[Array, "b 77 d"]]
    dtype: Literal["float32", "float16"]

    def __call__(self, folder: Path, number: int, numbers: range) -> Outcome:
        """Writes one piece's embeddings, (captions, 77, d), to `shard_name(number)`.

        Args:
          folder: an existing one.
          number: of the piece, from 0.
          numbers: rows of `ids` that are the piece's; at least one.
        """
        ids = self.ids[numbers.start : numbers.stop]
        # All batches of one shape, so that one program serves them.
        padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % _BATCH, axis=0)])
        parts = [np.asarray(self.encode(jnp.asarray(part))) for part in np.split(padded, len(padded) // _BATCH)]
        np.save(folder / shard_name(number), np.concatenate(parts)[: len(ids)].astype(self.dtype))
        return Outcome(written=len(ids))


def distinct_captions(
    captions: Iterable[Caption], tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, "n 77"], UInt64[np.ndarray, "n"]]:
    """The tokens and keys of all distinct captions, by rising keys. Dropped captions are "", so that is one of them."""
    texts = {""} | {text for caption in captions for text in (caption.high, caption.low)}
    ids = np.unique(np.array([tokenize_caption(text, tokenizer) for text in sorted(texts)]), axis=0)
    keys = keys_of(ids)
    order = np.argsort(keys)
    if len(np.unique(keys)) != len(keys):
        raise AssertionError("two captions have the same key")
    return ids[order], keys[order]


def write_description(folder: Path, *, keys: UInt64[np.ndarray, "n"], text_encoder: str) -> None:
    """Completes the folder.

    Args:
      text_encoder: its SHA-256, `training.fingerprints.fingerprint`.
    """
    np.save(folder / KEYS, keys)
    write_json({"text_encoder": text_encoder, "rows": ROWS}, folder / DESCRIPTION)


def digest(ids: Int[np.ndarray, "n 77"]) -> str:
    """Tells other captions from these."""
    return hashlib.sha256(ids.tobytes()).hexdigest()


def encoder_of(network: TextEncoder) -> Callable[[Int[Array, "b 77"]], Float[Array, "b 77 d"]]:
    """A text encoder as one compiled program."""
    return jax.jit(lambda ids: network(ids))
