"""The visible colours of a picture with transparency."""

import numpy as np
from jaxtyping import UInt8

from xpsr_jax.images.picture import Picture


def fill_invisible(rgb: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Gives invisible pixels (alpha 0) the colour of the nearest visible pixel.

    A file's colours there are arbitrary. They would leak into the visible edge when the picture is enlarged or
    measured. If no pixel is visible, the colours are unchanged.
    """
    from scipy import ndimage  # imported here because it takes 0.2 s, and few pictures need it

    invisible = alpha == 0
    if not invisible.any() or invisible.all():
        return rgb
    rows, columns = ndimage.distance_transform_edt(invisible, return_distances=False, return_indices=True)
    filled = rgb.copy()
    filled[invisible] = rgb[rows[invisible], columns[invisible]]
    return filled


def on_white(picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """The picture on a white background."""
    if picture.alpha is None:
        return picture.rgb
    alpha = picture.alpha[..., None].astype(np.uint16)
    return ((picture.rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
