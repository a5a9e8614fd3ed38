"""Finding, reading and writing image files."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from xpsr_jax.errors import UserError

# What a folder is searched for. A file named outright may have any name.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif"})

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Input:
    """An image file to be restored.

    Attributes:
        path: where it is.
        name: its path below the folder it was found in, or its file name if it was named outright. Outputs are named
            after it.
    """

    path: Path
    name: Path


def list_inputs(paths: Sequence[Path], *, exclude: Path | None = None) -> list[Input]:
    """The image files that `paths` name, folders searched with their subfolders, in natural order (2 before 10).

    Args:
        exclude: a folder to pass over: the output folder, which may lie within an input folder.

    Raises:
        UserError: a path does not exist, a folder holds no image, or there is no path at all.
    """
    if not paths:
        raise UserError("no input: name at least one image or folder")
    found: dict[Path, Input] = {}
    for path in paths:
        if path.is_dir():
            inputs = [Input(file, file.relative_to(path)) for file in _images_below(path, exclude)]
            if not inputs:
                raise UserError(f"{path}: no image in this folder (looked for {', '.join(sorted(SUFFIXES))})")
        elif path.exists():
            inputs = [Input(path, Path(path.name))]
        else:
            raise UserError(f"{path}: no such file or folder")
        for each in inputs:
            found.setdefault(each.path.resolve(), each)
    return list(found.values())


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file as 8-bit RGB, upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted; alpha is dropped; of an animation the first picture is taken.

    Raises:
        UserError: it cannot be read, is no image, is damaged, is too large to be meant, or has floating-point pixels.
    """
    with _opened(path) as image:
        if image.mode == "F":
            raise UserError(f"{path}: floating-point pixels are not supported; save it with 8 or 16 bits")
        image = ImageOps.exif_transpose(image)
        if image.mode in _SIXTEEN_BIT_MODES:
            grey = np.round(np.clip(np.asarray(image, np.float32), 0, 65535) / 257).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of what `read_image` would return, from the file's header alone. Raises as that does."""
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5
        return (width, height) if turned else (height, width)


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG that appears under its name only when complete, making its folder if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                Image.fromarray(image).save(file, format="PNG")
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_writable(folder: Path) -> None:
    """Makes a folder, and a file in it for a moment: better to raise `UserError` now than after hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write into this folder: {error.strerror or error}") from error


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key under which img2 comes before img10."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part.casefold())
        for part in re.split(r"(\d+)", path.as_posix())
        if part
    ]


def _images_below(folder: Path, exclude: Path | None) -> list[Path]:
    excluded = exclude.resolve() if exclude is not None else None
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and (Path(root) / name).resolve() != excluded
        ]
        files += [
            Path(root) / name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(files, key=natural_order)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """PIL's image. Whatever is wrong with the file, here or while it is decoded, becomes one line."""
    try:
        with Image.open(path) as image:
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image, or of a format that Pillow does not know") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: larger than an image should be: {error}") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (
        Exception
    ) as error:  # decoders raise all sorts on damaged files: OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"{path}: damaged, or an unsupported kind of image: {error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
