"""Image files: finding them, and decoding them to upright 8-bit RGB."""

import io
import os
import re
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from xpsr_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def list_images(root: str | os.PathLike) -> list[str]:
    """Relative paths (forward slashes) of the images under `root`, in natural order; hidden ones are left out."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no image folder {root}.")
    found = list_files(root, SUFFIXES)
    if not found:
        raise UserError(f"There is no image in {root} (looked for {', '.join(SUFFIXES)}).")
    return sorted(found, key=natural_key)


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Relative paths (forward slashes) of the files under `root` with these endings; hidden ones are left out."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        found += [
            (relative / name).as_posix()
            for name in files
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return found


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts numbers within names by value."""
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def read_bytes(path: str | os.PathLike) -> bytes:
    """Raises UserError that names the file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the image {path}: {error.strerror or error}") from error


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """`decode_image` of a file."""
    return decode_image(read_bytes(path), path)


def decode_image(data: bytes, name: object) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file to upright 8-bit RGB; transparency is dropped, 16 bits are scaled to 8.

    Raises:
      UserError: truncated, of floating-point pixels or not an image; says `name`.
    """
    try:
        try:
            with Image.open(io.BytesIO(data)) as picture:
                if picture.mode == "F":
                    raise ValueError("floating-point pixels are not supported; save it with 8 or 16 bits")
                if not picture.mode.startswith("I"):
                    return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
                picture.load()  # OpenCV would make do with a truncated one.
        except UnidentifiedImageError as error:
            # PIL knows no TIFF with 16 bits a colour.
            if not data.startswith((b"II*\0", b"MM\0*")):
                raise ValueError("it is no image, or of an unknown kind") from error
        return _decode_deep(data)
    except (OSError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError) as error:
        raise UserError(f"Cannot read the image {name}: {error}") from error


def _decode_deep(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """16 bits: PIL would saturate where OpenCV scales."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise OSError("OpenCV could not decode it")
    return image
