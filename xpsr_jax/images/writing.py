"""Writing pictures."""

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
    """Writes a file that appears under its name only when complete, making its folder if need be.

    What EXIF says of the picture's size and print resolution is made true. EXIF too long for a JPEG is left out.

    Args:
      format: of the file. JPEG has no transparency and loses it.
      quality: of JPEG and WebP, 1 to 100.
      when_complete: is called with the complete file's other name before it gets its own.

    Raises UserError if the system or the format (a WebP is at most 16383 pixels wide) refuses.
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
        # Of EXIF, Pillow writes what is in directories of its own, exposure and place, into uncompressed files only.
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
    """Without EXIF where Pillow fails on it: of what it reads, it cannot write all."""
    try:
        with file.open("wb") as opened:
            image.save(opened, format=format.upper(), **options)
    except (KeyError, AttributeError, IndexError, TypeError, struct.error):
        if "exif" not in options:
            raise
        _save(file, image, format, {name: value for name, value in options.items() if name != "exif"})


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """`write_picture` of nothing but colours."""
    write_picture(path, Picture(image))
