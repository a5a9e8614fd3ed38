"""The sizes of an image on its way through the model (method §7). Resizing is PIL's, as in the released code."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_Steps = list[tuple[tuple[int, int], Image.Resampling]]


def network_size(
    height: int, width: int, *, upscale: float, process_size: int, factor: int, multiple: int = 1
) -> tuple[int, int]:
    """The (height, width) at which the networks see an LR image of `height` x `width`: see `to_network_size`."""
    enlarged = enlarged_size(height, width, upscale=upscale, process_size=process_size, factor=factor)
    unit = factor * multiple
    return -(-enlarged[0] // unit) * unit, -(-enlarged[1] // unit) * unit


def enlarged_size(height: int, width: int, *, upscale: float, process_size: int, factor: int) -> tuple[int, int]:
    """The (height, width) of the image itself within `network_size`, without the padding."""
    return _steps(height, width, upscale=upscale, process_size=process_size, factor=factor)[-1][0]


def to_network_size(
    image: UInt8[np.ndarray, "_ _ 3"],
    *,
    upscale: float,
    process_size: int,
    factor: int,
    multiple: int = 1,
    lr_shape: tuple[int, ...] | None = None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Enlarges an LR image to the size at which the networks see it.

    1. Bicubic, by `upscale`.
    2. If the shorter side is then below `process_size`: bilinear, so that it equals `process_size`. The longer side is
       rounded down.
    3. Bicubic, down to multiples of `factor`, the side of a latent cell in pixels.
    4. Padded by reflection, on the right and below, to multiples of `multiple` cells.

    Args:
        lr_shape: (height, width, ...) of the LR image, if `image` is the first stage's result for it. None: `image` is
            the LR image.
    """
    height, width, *_ = lr_shape or image.shape
    steps = _steps(height, width, upscale=upscale, process_size=process_size, factor=factor)
    picture = Image.fromarray(image)
    for (height, width), resampling in steps:
        picture = picture.resize((width, height), resampling)
    below, right = (-side % (factor * multiple) for side in steps[-1][0])
    return np.pad(np.asarray(picture), ((0, below), (0, right), (0, 0)), mode="symmetric")


def to_output_size(
    image: UInt8[np.ndarray, "h w ..."], lr_shape: tuple[int, ...], *, upscale: float
) -> UInt8[np.ndarray, "h2 w2 ..."]:
    """Resizes (bicubic) a restored image to `upscale` times the size of its LR image.

    Args:
        lr_shape: (height, width, ...) of the LR image.
    """
    height, width = _scaled(lr_shape[0], upscale), _scaled(lr_shape[1], upscale)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _steps(height: int, width: int, *, upscale: float, process_size: int, factor: int) -> _Steps:
    height, width = _scaled(height, upscale), _scaled(width, upscale)
    steps: _Steps = [((height, width), Image.Resampling.BICUBIC)]
    shorter = min(height, width)
    if shorter < process_size:
        height, width = process_size * height // shorter, process_size * width // shorter
        steps.append(((height, width), Image.Resampling.BILINEAR))
    floored = max(height // factor, 1) * factor, max(width // factor, 1) * factor
    steps.append((floored, Image.Resampling.BICUBIC))
    return steps


def _scaled(length: int, upscale: float) -> int:
    return max(round(length * upscale), 1)
