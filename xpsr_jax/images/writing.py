"""Writes pictures to files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from xpsr_jax.errors import UserError
from xpsr_jax.files import new_file
from xpsr_jax.images.metadata import exif_to_write
from xpsr_jax.images.picture import Picture

Format = Literal["png", "jpeg", "webp", "tiff"]
SUFFIX_OF: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}

_MOST_EXIF_OF_JPEG = 65533  # bytes


def write_picture(
    path: Path,
    picture: Picture,
    *,
    format: Format = "png",
    quality: int = 95,
    when_complete: Callable[[Path], None] = lambda complete: None,
) -> None:
    """Writes a file. It appears under its name only when it is complete. Its folder is made if it is missing.

    The EXIF gets the picture's real size and print resolution. EXIF that is too long for a JPEG is omitted.

    Args:
      path: the file to write.
      picture: the picture.
      format: format of the file. JPEG drops the transparency.
      quality: quality of JPEG and WebP, 1 to 100.
      when_complete: called with the temporary path of the complete file, before it gets its final name.

    Raises UserError if the system refuses, or the format (a WebP has at most 16383 pixels per side).
    """
    pixels = picture.rgb
    if picture.alpha is not None and format != "jpeg":
        pixels = np.dstack([pixels, picture.alpha])
    height, width = pixels.shape[:2]
    options: dict[str, object] = {"icc_profile": picture.icc_profile}
    if picture.dpi and format != "webp":
        options["dpi"] = picture.dpi
    exif = exif_to_write(picture.exif, (width, height), picture.dpi, add_dpi=format == "webp")
    if exif and (format != "jpeg" or len(exif) <= _MOST_EXIF_OF_JPEG):
        options["exif"] = exif
    if format in ("jpeg", "webp"):
        options["quality"] = quality
    if format == "jpeg":
        options["subsampling"] = 0
    if format == "tiff":
        # Pillow writes the subdirectories of EXIF (exposure, location) only to uncompressed TIFF files.
        options["compression"] = "raw" if exif else "tiff_deflate"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            _save(temporary, Image.fromarray(pixels), format, options)
            when_complete(temporary)
    except (OSError, ValueError, TypeError, OverflowError, MemoryError, SystemError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written: {reason}") from error


def _save(file: Path, image: Image.Image, format: Format, options: dict[str, object]) -> None:
    """Saves without EXIF if Pillow fails on it, because Pillow cannot write all EXIF that it can read."""
    try:
        with file.open("wb") as opened:
            image.save(opened, format=format.upper(), **options)
    except (KeyError, AttributeError, IndexError, TypeError, struct.error):
        if "exif" not in options:
            raise
        _save(file, image, format, {name: value for name, value in options.items() if name != "exif"})


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG with colours only, like `write_picture`."""
    write_picture(path, Picture(image))
