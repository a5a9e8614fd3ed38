"""Reads pictures from files or bytes to upright 8-bit RGB. All errors of a picture are raised as `UserError`."""

import contextlib
import functools
import io
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.errors import UserError
from xpsr_jax.files import open_regular, read_regular
from xpsr_jax.images.alpha import fill_invisible
from xpsr_jax.images.formats import open_stored
from xpsr_jax.images.limits import MAX_PIXELS
from xpsr_jax.images.metadata import exif_to_keep, is_damaged
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.pixels import to_rgb

# Files with more bytes per pixel of the limit are refused. An uncompressed pixel has fewer than 16 bytes in any format.
_BYTES_A_PIXEL = 16

# Pillow warns about unusual files that it can read. `warnings.catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_picture(path: Path, *, max_pixels: int | None = None) -> Picture:
    """Reads an image file. Of an animation, the first picture is read.

    Args:
      path: the file.
      max_pixels: a larger picture is refused before it is decoded (the value of --max-megapixels). None: MAX_PIXELS. A
        file with more than 16 bytes for each of these pixels is refused too.

    Raises:
      UserError: the file cannot be read, is not a regular file or not an image, is damaged or too large, is a camera's
        raw file, has floating-point pixels, or there is not enough memory. The message is one line with the file's
        name.
    """
    return decode_picture(read_bytes(path, max_pixels=max_pixels), path, max_pixels=max_pixels)


def decode_picture(data: bytes, name: object, *, max_pixels: int | None = None) -> Picture:
    """Decodes the bytes of an image file, like `read_picture`. `name` names the file in errors.

    Grey, palette and 16-bit pictures become 8-bit RGB. CMYK pictures, and grey pictures with a colour profile, are
    converted to sRGB with their profile. Damaged EXIF is ignored. Invisible pixels are filled (`fill_invisible`).
    """
    with _explained(name):
        stored = open_stored(io.BytesIO(data), name, functools.partial(_check_size, max_pixels))
        image, exif = stored.decode(), exif_to_keep(stored.exif)
        rgb, alpha, profile = to_rgb(image, stored.icc_profile, stored.orientation)
        if alpha is not None:
            rgb = fill_invisible(rgb, alpha)
        as_stored = (
            image.mode in ("L", "RGB")
            and alpha is None
            and profile == stored.icc_profile
            and stored.orientation == 1
            and not is_damaged(stored.exif)  # Other programs may read damaged EXIF in another way.
        )
        return Picture(rgb, alpha, profile, exif, stored.print_resolution, as_stored)


def read_image(path: Path, *, max_pixels: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The colours of `read_picture`. Raises the same errors."""
    return read_picture(path, max_pixels=max_pixels).rgb


def decode_image(data: bytes, name: object, *, max_pixels: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The colours of `decode_picture`. Raises the same errors."""
    return decode_picture(data, name, max_pixels=max_pixels).rgb


def read_size(path: Path, *, max_pixels: int | None = None) -> tuple[int, int]:
    """The (height, width) of the upright picture. Reads only the file's header. Raises like `read_picture`."""
    with (
        open_regular(path, max_bytes=_most_bytes(max_pixels)) as file,
        _explained(path),
    ):
        return open_stored(file, path, functools.partial(_check_size, max_pixels)).upright_size


def read_bytes(path: str | os.PathLike, *, max_pixels: int | None = None) -> bytes:
    """The bytes of an image file, for `decode_picture`. Raises UserError if the file cannot be read or is too large."""
    with _explained(path):
        return read_regular(as_path(path), max_bytes=_most_bytes(max_pixels))


def _most_bytes(max_pixels: int | None) -> int:
    return min(_BYTES_A_PIXEL * max(max_pixels or 0, MAX_PIXELS), sys.maxsize - 1)


def _check_size(max_pixels: int | None, size: tuple[int, int]) -> None:
    limit = max_pixels or MAX_PIXELS
    width, height = size
    if min(size) < 1:
        raise UserError(f"has no pixels: its size is {width} x {height}")
    if width * height > limit:
        advice = "--max-megapixels allows more" if max_pixels else "reduce it first"
        raise UserError(f"{width} x {height} pixels are more than {limit / 1e6:g} million; {advice}")


@contextlib.contextmanager
def _explained(name: object) -> Iterator[None]:
    """Converts any error of a file to a UserError of one line that names the file."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith(str(name)) else UserError(f"{name}: {error}") from error
    except MemoryError as error:
        raise UserError(f"{name}: there is not enough memory to read it") from error
    except Exception as error:
        # Decoders raise many types for damaged files: OSError, SyntaxError, ValueError, struct.error, RecursionError,
        # ...
        reason = type(error).__name__ if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(f"{name}: damaged, or an unsupported kind of image: {reason}") from error
