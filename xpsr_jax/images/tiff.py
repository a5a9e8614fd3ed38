"""Reads TIFF files at full size. Recognises raw files of cameras, which are often TIFF files too."""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from xpsr_jax.errors import UserError
from xpsr_jax.files import ByteFile
from xpsr_jax.images.metadata import exif_of_tiff
from xpsr_jax.images.pixels import to_8_bits
from xpsr_jax.images.stored import Stored

BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RAW_FILE = "a camera's raw file; develop it first"
# The first bytes of raw files that are not TIFF files: Canon, Fujifilm, Olympus, Panasonic, Sigma, Minolta.
_RAW = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR")
_RAW_ENDINGS = (
    *(".3fr", ".ari", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dcs", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25"),
    *(".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".ptx", ".raf", ".raw", ".rw2", ".rwl", ".rwz"),
    *(".sr2", ".srf", ".srw", ".x3f"),
)
_WIDTH, _HEIGHT, _BITS, _PLANES, _X_RESOLUTION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 284, 282, 322, 323
_SUBFILE_TYPE, _REDUCED, _PHOTOMETRIC = 254, 1, 262
# The tags of DNG's version and of a sensor's colour filters. The pixel types of a sensor. The tag with the positions of
# pictures that are not in the main list.
_DNG_VERSION, _FILTERS, _OF_A_SENSOR, _ELSEWHERE = 50706, 33422, (32803, 34892), 330
_MOST_PICTURES = 1000

Tags = TiffImagePlugin.ImageFileDirectory_v2


class _Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF plugin with two changes.

    It does not use Pillow's limit of pixels, which applies to the whole process. And after decoding it does not read
    EXIF, which may be damaged, and does not rotate the picture.
    """

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, (int(self.tag_v2[_WIDTH]), int(self.tag_v2[_HEIGHT])))
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:
        self._size = self.im.size


def refuse_raw(beginning: bytes, name: object) -> None:
    """Raises UserError for a camera's raw file, by its first 16 bytes or its name.

    Some raw files cannot be distinguished from a TIFF by their tags. Pillow would read only a small preview from them.
    """
    canon = (beginning[:4], beginning[8:10]) == (b"II*\0", b"CR") or beginning[4:12] == b"ftypcrx "
    if canon or beginning.startswith(_RAW) or str(name).lower().endswith(_RAW_ENDINGS):
        raise UserError(RAW_FILE)


def open_tiff(file: ByteFile, check: Callable[[tuple[int, int]], None]) -> Stored:
    """Reads the tags of the first picture at full size.

    Args:
      check: raises UserError for a size (width, height) that is too large.

    Raises:
      UserError: it is a camera's raw file, or has separate planes of 16 bits.
      SyntaxError: Pillow does not know this type of pixels. (OpenCV is no alternative: it returns black if it cannot
        decode a picture.)
    """
    number, tags = _full_size(file)
    size = int(tags[_WIDTH]), int(tags[_HEIGHT])
    check(size)
    if _TILE_WIDTH in tags and _TILE_HEIGHT in tags:  # The decoder allocates memory for a tile.
        check((int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])))

    def open_again() -> _Tiff:
        file.seek(0)
        image = _Tiff(file)
        image.seek(number)
        return image

    deep = max(tags.get(_BITS, (8,))) == 16
    if deep and tags.get(_PLANES, 1) != 1:  # Pillow and OpenCV would take one plane for all
        raise UserError("16-bit channels in separate planes are not supported; save it with interleaved channels")
    image = open_again()

    def decode() -> Image.Image:
        image.load()
        if deep and image.mode in ("RGB", "RGBA"):
            return _of_16_bits(image, open_again())
        return image

    info = image.info
    dpi = info.get("dpi") if _X_RESOLUTION in tags else None  # Pillow's would be 1
    return Stored(size, decode, exif_of_tiff(image), info.get("xmp"), info.get("icc_profile"), dpi)


def _of_16_bits(upper: Image.Image, image: _Tiff) -> Image.Image:
    """Rounds a picture with 16 bits per channel to 8. `upper` has the upper 8 bits, and `image` decodes the lower 8."""
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}

    def swapped(pixels: str, *others: Any) -> tuple[Any, ...]:
        return f"{pixels[:-1]}{other[pixels[-1]]}", *others

    image.tile = [tile._replace(args=swapped(*(tile.args or ()))) for tile in image.tile]
    image.load()
    values = np.asarray(upper).astype(np.uint16) << 8 | np.asarray(image)
    return Image.fromarray(to_8_bits(values))


def _full_size(file: ByteFile) -> tuple[int, Tags]:
    """The number and tags of the first picture that is not reduced, or of the first picture if all are reduced."""
    first = None
    for number, tags in enumerate(itertools.islice(_pictures(file), _MOST_PICTURES)):
        if _DNG_VERSION in tags or _FILTERS in tags or tags.get(_PHOTOMETRIC) in _OF_A_SENSOR:
            raise UserError(RAW_FILE)
        if not int(tags.get(_SUBFILE_TYPE, 0)) & _REDUCED:
            return number, tags
        first = tags if first is None else first
    if first is None:
        raise OSError("it has no picture")
    if _ELSEWHERE in first:
        raise UserError(RAW_FILE)
    return 0, first


def _pictures(file: ByteFile) -> Iterator[Tags]:
    """The tags of each picture in the file."""
    file.seek(0)
    header = file.read(8)
    if header[2:3] == b"\x2b" or header[3:4] == b"\x2b":  # BigTIFF
        header += file.read(8)
    place, seen = Tags(header).next, set()
    while place and place not in seen:
        seen.add(place)
        tags = Tags(header)
        file.seek(place)
        tags.load(file)
        yield tags
        place = tags.next
