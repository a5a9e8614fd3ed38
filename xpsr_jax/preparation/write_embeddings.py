"""Writes embeddings of captions to disk. `data.embeddings` reads them."""

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

# Captions per file: 236 MB in float32 at CLIP's size.
ROWS = 1024
_BATCH = 64


@dataclass(frozen=True)
class WriteEmbeddings:
    """Writes the embeddings of one piece of the captions to a file.

    Attributes:
      ids: tokens of all captions, in the order of their keys.
      encode: a function from token ids to embeddings.
    """

    ids: Int[np.ndarray, "n 77"]
    encode: Callable[[Int[Array, "b 77"]], Float[Array, "b 77 d"]]
    dtype: Literal["float32", "float16"]

    def __call__(self, folder: Path, number: int, numbers: range) -> Outcome:
        """Writes one piece's embeddings, (captions, 77, d), to `shard_name(number)`.

        Args:
          folder: an existing folder.
          number: the number of the piece, from 0.
          numbers: the rows of `ids` in this piece; at least one.
        """
        ids = self.ids[numbers.start : numbers.stop]
        # All batches have the same shape, so that one compiled program is enough.
        padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % _BATCH, axis=0)])
        parts = [np.asarray(self.encode(jnp.asarray(part))) for part in np.split(padded, len(padded) // _BATCH)]
        np.save(folder / shard_name(number), np.concatenate(parts)[: len(ids)].astype(self.dtype))
        return Outcome(written=len(ids))


def distinct_captions(
    captions: Iterable[Caption], tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, "n 77"], UInt64[np.ndarray, "n"]]:
    """The tokens and keys of all distinct captions, sorted by key. Includes "", the text of a dropped caption."""
    texts = {""} | {text for caption in captions for text in (caption.high, caption.low)}
    ids = np.unique(np.array([tokenize_caption(text, tokenizer) for text in sorted(texts)]), axis=0)
    keys = keys_of(ids)
    order = np.argsort(keys)
    if len(np.unique(keys)) != len(keys):
        raise AssertionError("two captions have the same key")
    return ids[order], keys[order]


def write_description(folder: Path, *, keys: UInt64[np.ndarray, "n"], text_encoder: str) -> None:
    """Completes the folder: writes the keys and the description.

    Args:
      text_encoder: SHA-256 of the text encoder (`training.fingerprints.fingerprint`).
    """
    np.save(folder / KEYS, keys)
    write_json({"text_encoder": text_encoder, "rows": ROWS}, folder / DESCRIPTION)


def digest(ids: Int[np.ndarray, "n 77"]) -> str:
    """A hash of the captions' tokens."""
    return hashlib.sha256(ids.tobytes()).hexdigest()


def encoder_of(network: TextEncoder) -> Callable[[Int[Array, "b 77"]], Float[Array, "b 77 d"]]:
    """A text encoder as one compiled program."""
    return jax.jit(lambda ids: network(ids))
