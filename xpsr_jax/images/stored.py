"""A picture in a file. Only its header was read."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from xpsr_jax.images.metadata import Dpi, dpi_of, orientation_of, upright_size


@dataclass(frozen=True)
class Stored:
    """A picture that is not decoded yet.

    Attributes:
      size: (width, height) of the stored picture.
      decode: reads and decodes the stored pixels. Raises Pillow's exceptions if they are damaged.
      exif, xmp, icc_profile: bytes from the file.
      dpi: the file's print resolution outside EXIF, in pixels per inch.
    """

    size: tuple[int, int]
    decode: Callable[[], Image.Image]
    exif: bytes | None = None
    xmp: bytes | None = None
    icc_profile: bytes | None = None
    dpi: object = None

    @property
    def orientation(self) -> int:
        """The orientation by the EXIF standard."""
        return orientation_of(self.exif, self.xmp)

    @property
    def upright_size(self) -> tuple[int, int]:
        """The (height, width) of the upright picture."""
        return upright_size(self.size, self.orientation)

    @property
    def print_resolution(self) -> Dpi | None:
        """The print resolution (x, y) in pixels per inch, from the file or else from EXIF. None if there is none."""
        return dpi_of(self.dpi, self.exif)
