"""From an image file to a restored one: what comes before and after the networks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from xpsr_jax.errors import UserError
from xpsr_jax.inference.image_io import Format, Picture, read_size, write_picture
from xpsr_jax.inference.restore import Restorer
from xpsr_jax.inference.sizes import to_output_size


def checked_size(restorer: Restorer, path: Path, max_pixels: int) -> tuple[int, int]:
    """(height, width) at which the networks see an image, from the file's header alone.

    Raises UserError if the file is no image, or it or the result has more than `max_pixels`.
    """
    size = read_size(path, max_pixels=max_pixels)
    for height, width in ([side * restorer.sampling.upscale for side in size], restorer.enlarged_size(*size)):
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
    """Writes what became of `picture`, with its transparency, colour profile and EXIF. See `write_picture`.

    Args:
        rgb: its restored colours, `upscale` times as large.
    """
    alpha = picture.alpha
    if alpha is not None:  # which no network restores
        alpha = to_output_size(alpha, alpha.shape, upscale=upscale)
    restored = dataclasses.replace(picture, rgb=rgb, alpha=alpha)
    write_picture(path, restored, format=format, quality=quality, when_complete=when_complete)
