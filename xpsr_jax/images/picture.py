"""What a picture is once it is read."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Picture:
    """One picture, upright.

    Attributes:
      rgb: its colours, 8 bits. Where the picture cannot be seen (alpha 0), those of the nearest place that can.
      alpha: its transparency; None: opaque everywhere.
      icc_profile: what the colours mean; None: sRGB.
      exif: as bytes, without an orientation; None: none.
      dpi: pixels an inch, across and down, in print; None: not stated.
      as_stored: the file holds these pixels as they are: nothing was turned, converted or filled.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    as_stored: bool = False
