"""A picture in memory."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Picture:
    """One picture, upright.

    Attributes:
      rgb: its colours, 8 bits. Invisible pixels (alpha 0) have the colour of the nearest visible pixel.
      alpha: its opacity. None: all pixels are opaque.
      icc_profile: the colour profile. None: sRGB.
      exif: EXIF bytes without the orientation. None: no EXIF.
      dpi: print resolution in pixels per inch, horizontal and vertical. None: not known.
      as_stored: these are exactly the file's pixels: nothing was rotated, converted or filled.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    as_stored: bool = False
