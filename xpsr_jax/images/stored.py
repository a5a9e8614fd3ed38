"""A picture in a file of which only the header is read."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from xpsr_jax.images.metadata import Dpi, dpi_of, orientation_of, upright_size


@dataclass(frozen=True)
class Stored:
    """A picture that is not decoded yet.

    Attributes:
      size: (width, height) as it is stored.
      decode: reads and decodes the pixels, as they are stored. Raises whatever Pillow does where they are damaged.
      exif, xmp, icc_profile: as the file has them.
      dpi: pixels an inch, as the file has them outside EXIF.
    """

    size: tuple[int, int]
    decode: Callable[[], Image.Image]
    exif: bytes | None = None
    xmp: bytes | None = None
    icc_profile: bytes | None = None
    dpi: object = None

    @property
    def orientation(self) -> int:
        """How to turn it upright, by the EXIF standard."""
        return orientation_of(self.exif, self.xmp)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) when upright."""
        return upright_size(self.size, self.orientation)

    @property
    def print_resolution(self) -> Dpi | None:
        """(x, y) in pixels an inch, from the file or else from EXIF; None if neither has one that makes sense."""
        return dpi_of(self.dpi, self.exif)
