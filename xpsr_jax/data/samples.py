"""A training photograph, stored and decoded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from jaxtyping import UInt8

from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.images.reading import decode_image


@dataclass(frozen=True)
class Sample:
    """One photograph, optionally with a degraded version.

    Attributes:
      image: RGB, 8 bits, upright.
      caption: the caption of the photograph itself.
      path: the file's path relative to its source, as caption files name it.
      lr_caption: the caption of a degraded version; None: there is no such caption.
      lr: the degraded version; its size is the photograph's, divided by a whole number; None: it must be made.
      first_stage: the first stage's picture of the degraded version, with the photograph's size; None: not stored.
    """

    image: UInt8[np.ndarray, "h w 3"]
    caption: Caption
    path: str
    lr_caption: Caption | None = None
    lr: UInt8[np.ndarray, "h2 w2 3"] | None = None
    first_stage: UInt8[np.ndarray, "h w 3"] | None = None


@dataclass(frozen=True)
class StoredSample:
    """A sample before its images are decoded.

    Attributes:
      image, lr, first_stage: complete image files, in any format that `xpsr_jax.images` reads.
      caption, path, lr_caption: as in `Sample`.
    """

    image: bytes
    caption: Caption
    path: str
    lr_caption: Caption | None = None
    lr: bytes | None = None
    first_stage: bytes | None = None

    def decode(self, root: Path) -> Sample:
        """The decoded sample. Raises UserError for an image that cannot be decoded; its name is given under `root`."""
        name = root / self.path
        lr = None if self.lr is None else decode_image(self.lr, f"{name} (its LR image)")
        clean = None if self.first_stage is None else decode_image(self.first_stage, f"{name} (its first stage's)")
        return Sample(decode_image(self.image, name), self.caption, self.path, self.lr_caption, lr, clean)


# Python's error handler for file names that are not valid UTF-8.
_NAMES = "surrogateescape"
# The captions' keys in a stored record.
_CAPTIONS = {"caption": ("high", "low"), "lr_caption": ("lr_high", "lr_low")}


def to_fields(record: StoredSample) -> dict[str, Any]:
    """The record as a flat dictionary of `bytes` and `str`, as ArrayRecord and TFDS store it."""
    fields: dict[str, Any] = {"image": record.image, "path": record.path}
    for name, (high, low) in _CAPTIONS.items():
        caption = getattr(record, name) or Caption()
        fields |= {high: caption.high, low: caption.low}
    images = {"lr": record.lr, "first_stage": record.first_stage}
    return fields | {name: image for name, image in images.items() if image is not None}


def from_fields(fields: dict[str, Any]) -> StoredSample:
    """The inverse of `to_fields`. Only the field "image" is required."""

    def text(name: str) -> str:
        value = fields.get(name, "")
        return value.decode(errors=_NAMES) if isinstance(value, bytes) else value

    caption, lr_caption = (Caption(text(high), text(low)) for high, low in _CAPTIONS.values())
    return StoredSample(
        fields["image"],
        caption,
        text("path"),
        lr_caption if lr_caption != Caption() else None,
        fields.get("lr"),
        fields.get("first_stage"),
    )


def pack(record: StoredSample) -> bytes:
    """The record as bytes for an ArrayRecord file, in msgpack format."""
    packed: bytes = msgpack.packb(to_fields(record), unicode_errors=_NAMES)
    return packed


def unpack(data: bytes, where: str) -> StoredSample:
    """The inverse of `pack`. Raises UserError for other data; the message contains `where`."""
    try:
        return from_fields(msgpack.unpackb(data, unicode_errors=_NAMES))
    except (msgpack.UnpackException, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{where} is not a record of a photograph ({error}). Write such files with xpsr prepare records"
        ) from error
