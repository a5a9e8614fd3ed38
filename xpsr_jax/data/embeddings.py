"""Text embeddings on disk, found by a caption's tokens. With them, training needs no text encoder.

A folder contains:

- keys.npy: one number per caption, sorted.
- embeddings-00000.npy, ...: float32 or float16 of shape (rows, 77, d), in the order of the keys. All files except the
  last have the same number of rows.
- embeddings.json: the number of rows, and the hash of the text encoder.
"""

import hashlib
import os
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int, UInt64

from xpsr_jax.buckets.cache import local_folder
from xpsr_jax.buckets.paths import as_path
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import read_json
from xpsr_jax.serialisation import Range, from_json

DESCRIPTION, KEYS = "embeddings.json", "keys.npy"


@dataclass(frozen=True)
class _Description:
    """embeddings.json."""

    text_encoder: str
    rows: Annotated[int, Range(1)]


class TextEmbeddings:
    """Reads a folder of text embeddings. Embeddings are read when they are needed, by each process for itself.

    Attributes:
      text_encoder: SHA-256 of the text encoder, as a training run records it.

    Raises:
      UserError: the folder is missing or incomplete.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = local_folder(as_path(folder))
        self._shards: dict[int, np.ndarray] = {}
        try:
            description = from_json(_Description, read_json(self.folder / DESCRIPTION), self.folder / DESCRIPTION)
            self.text_encoder, self._rows = description.text_encoder, description.rows
            self._keys = np.load(self.folder / KEYS, allow_pickle=False)
            self._shard(0)
        except (OSError, ValueError, UserError) as error:
            raise UserError(
                f"{self.folder} has no text embeddings ({error}). Make them with xpsr prepare embeddings"
            ) from error

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, ids: Int[np.ndarray, "77"], text: str) -> Float[np.ndarray, "77 d"]:
        """The text encoder's output for these tokens, float32.

        Args:
          text: the caption, for the error message.

        Raises UserError if the folder does not have this embedding.
        """
        key = key_of(ids)
        row = int(np.searchsorted(self._keys, key))
        if row == len(self._keys) or self._keys[row] != key:
            raise UserError(
                f"{self.folder} has no embedding of the caption {text!r}. Make the folder again with "
                "xpsr prepare embeddings, from the captions of this training"
            )
        embedding: np.ndarray = self._shard(row // self._rows)[row % self._rows].astype(np.float32)
        return embedding

    def _shard(self, number: int) -> np.ndarray:
        """One file of embeddings, mapped into memory."""
        if number not in self._shards:
            try:
                self._shards[number] = np.load(self.folder / shard_name(number), mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(f"Cannot read the text embeddings {self.folder}: {error}") from error
        return self._shards[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}


def shard_name(number: int) -> str:
    """The name of the embedding file with this number, from 0."""
    return f"embeddings-{number:05d}.npy"


def key_of(ids: Int[np.ndarray, "77"]) -> np.uint64:
    """A hash of a caption's tokens. The probability that two of a million captions have the same one is 3e-8."""
    digest = hashlib.sha256(np.ascontiguousarray(ids, "<i4").tobytes()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def keys_of(ids: Int[np.ndarray, "n 77"]) -> UInt64[np.ndarray, "n"]:
    """`key_of` for each row."""
    return np.array([key_of(each) for each in ids], np.uint64)
