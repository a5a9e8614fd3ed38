"""The steps before and after the networks, from an image file to a restored image file."""

import dataclasses
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from xpsr_jax.errors import UserError
from xpsr_jax.images.listing import Input, real
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import read_size
from xpsr_jax.images.writing import SUFFIX_OF, Format, write_picture
from xpsr_jax.inference.restore import Restorer
from xpsr_jax.inference.sizes import to_output_size

# The longest side that a format can hold, in pixels.
_LONGEST_SIDE: dict[Format, int] = {"jpeg": 65500, "webp": 16383}
# The longest file name, in bytes.
_LONGEST_NAME = 255
# System errors that would occur again with the next file.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def output_paths(inputs: Sequence[Input], folder: Path, format: Format) -> list[Path]:
    """The path of each input's result: the input's name with the suffix of the format.

    Raises UserError if two results would have the same path, if a result would overwrite an input, or if its name
    would be too long.
    """
    outputs = [folder / each.name.with_suffix(SUFFIX_OF[format]) for each in inputs]
    taken: dict[Path, Path] = {}
    for each, output in zip(inputs, outputs, strict=True):
        if (length := len(os.fsencode(output.name))) > _LONGEST_NAME:
            raise UserError(
                f"{each.path}: the name of its result would have {length} bytes, but file systems allow at most "
                f"{_LONGEST_NAME}: rename it, or choose another --format"
            )
        if output in taken:
            raise UserError(
                f"{taken[output]} and {each.path} would both become {output}: restore them into different folders"
            )
        taken[output] = each.path
    # Not `Path.resolve`, which raises if symbolic links form a loop.
    sources = {real(each.path) for each in inputs}
    for output in outputs:
        if real(output) in sources:
            raise UserError(f"{output} is an input and would be overwritten: choose another --output")
    return outputs


def checked_size(restorer: Restorer, path: Path, max_pixels: int, format: Format) -> tuple[int, int]:
    """The (height, width) at which the networks see an image. Only the file's header is read.

    Raises UserError if the file is not an image, if the image or its result has more than `max_pixels` pixels, or if
    the result is too large for its format.
    """
    size = read_size(path, max_pixels=max_pixels)
    result = [side * restorer.sampling.upscale for side in size]
    if format in _LONGEST_SIDE and max(result) > _LONGEST_SIDE[format]:
        raise UserError(
            f"{path}: would be restored at {result[1]} x {result[0]}, and {format} holds at most "
            f"{_LONGEST_SIDE[format]} pixels along a side; --format png holds more"
        )
    for height, width in (result, restorer.enlarged_size(*size)):
        if height * width > max_pixels:
            raise UserError(
                f"{path}: {size[1]} x {size[0]} pixels would be restored at {width} x {height}, which is more than "
                f"{max_pixels / 1e6:g} million; --max-megapixels allows more"
            )
    return restorer.network_size(*size)


def write_restored(
    path: Path,
    picture: Picture,
    rgb: UInt8[np.ndarray, "h2 w2 3"],
    *,
    upscale: int,
    format: Format = "png",
    quality: int = 95,
    when_complete: Callable[[Path], None] = lambda complete: None,
) -> None:
    """Writes a restored picture with the transparency, colour profile and EXIF of `picture`. See `write_picture`.

    Args:
        picture: the picture before it was restored.
        rgb: the restored colours, `upscale` times as large.
    """
    alpha = picture.alpha
    if alpha is not None:  # the networks restore colours only
        alpha = to_output_size(alpha, alpha.shape, upscale=upscale)
    restored = dataclasses.replace(picture, rgb=rgb, alpha=alpha)
    write_picture(path, restored, format=format, quality=quality, when_complete=when_complete)


def write_failure(source: Path, error: UserError, format: Format) -> str:
    """The message for an image whose result `write_restored` could not write.

    Raises the error again if its cause is not this image: on a full disk the next image would fail too.
    """
    reason = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
    if reason in _NO_ROOM:
        raise error
    # If no system error caused it, the format refused the image.
    advice = "; --format png may hold it" if reason is None and format != "png" else ""
    return f"{source}: {error}{advice}"


def last_change(paths: Sequence[Path]) -> float:
    """The time of the last change to these files and folders, and to everything inside them.

    It is the system's time of change: the modification time can be older.
    """
    files = (each for path in paths for each in (path, *path.rglob("*")))
    return max(file.stat().st_ctime for file in files if file.exists())
