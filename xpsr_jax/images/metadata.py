"""Metadata of image files: EXIF, print resolution, orientation.

Damaged metadata is ignored. The picture is read in any case.
"""

import math
import re
from collections.abc import Callable
from typing import TypeVar

from PIL import ExifTags, Image

Value = TypeVar("Value")
Dpi = tuple[float, float]

ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)
# TIFF's tags for sizes, strips, tiles, compression, samples, XMP and profile. The EXIF of a TIFF contains them too.
_STORAGE = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, ORIENTATION, 277, 278, 279, 284, 317, 320),
    *(322, 323, 324, 325, 330, 338, 339, 347, 530, 532, 700, 34675),
)
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _INCH = 282, 283, 296, 2
_WIDTH, _HEIGHT = 40962, 40963
# A directory that is valid only inside the EXIF directory. If it is elsewhere, Pillow cannot write a TIFF.
_INTEROPERABILITY = 40965
# JPEG stores the print resolution as 16-bit integers.
_MOST_DPI = 65535


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """The (height, width) of the upright picture, from the (width, height) of the stored one."""
    width, height = size
    return (width, height) if orientation in _ON_ITS_SIDE else (height, width)


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """The orientation by the EXIF standard, 1 to 8. 1 is upright, and the result for invalid values or damaged EXIF."""
    found = _unless_damaged(lambda: _loaded(exif).get(ORIENTATION)) if exif else None
    if found is None and xmp and (match := re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)):
        found = int(match[1])
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def is_damaged(exif: bytes | None) -> bool:
    """Whether any part of the EXIF cannot be read."""
    return exif is not None and _unless_damaged(lambda: _loaded(exif).tobytes()) is None


def exif_to_keep(exif: bytes | None) -> bytes | None:
    """The EXIF without tags about storage and orientation. None if nothing is left or the EXIF is damaged."""
    if not exif:
        return None

    def kept() -> bytes | None:
        loaded = _loaded(exif)
        for tag in (*_STORAGE, _INTEROPERABILITY):
            loaded.pop(tag, None)
        return loaded.tobytes() if len(loaded) else None

    return _unless_damaged(kept)


def exif_of_tiff(image: Image.Image) -> bytes | None:
    """The tags of a TIFF as EXIF. None if they are damaged."""
    return _unless_damaged(lambda: image.getexif().tobytes())


def exif_to_write(exif: bytes | None, size: tuple[int, int], dpi: Dpi | None, *, add_dpi: bool) -> bytes | None:
    """The EXIF for a new file. Tags for the picture's size and print resolution are set to the new values.

    Args:
      exif: the EXIF of the original picture. None: it had none.
      size: (width, height) of the new picture.
      dpi: print resolution of the new picture. None: not known.
      add_dpi: add the print resolution if the EXIF does not have it, because the format has no other place for it.
    """

    def written() -> bytes | None:
        loaded = _loaded(exif) if exif else Image.Exif()
        details = loaded.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in loaded else {}
        for tag, value in zip((_WIDTH, _HEIGHT), size, strict=True):
            if tag in details:
                details[tag] = value
        if dpi is None:
            for tag in (_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT):
                loaded.pop(tag, None)
        elif add_dpi or _X_RESOLUTION in loaded or _Y_RESOLUTION in loaded:
            loaded[_X_RESOLUTION], loaded[_Y_RESOLUTION] = dpi
            loaded[_RESOLUTION_UNIT] = _INCH
        return loaded.tobytes() if len(loaded) else None

    return _unless_damaged(written)


def dpi_of(stated: object, exif: bytes | None) -> Dpi | None:
    """The print resolution in pixels per inch, from the format or else from EXIF. None if it is missing or invalid."""
    found = _unless_damaged(lambda: _sensible(stated)) if stated else None
    return found or (_unless_damaged(lambda: _dpi_of_exif(_loaded(exif))) if exif else None)


def _dpi_of_exif(exif: Image.Exif) -> Dpi | None:
    inch = {2: 1.0, 3: 2.54}.get(exif.get(_RESOLUTION_UNIT, 2))
    return None if inch is None else _sensible([inch * float(exif[tag]) for tag in (_X_RESOLUTION, _Y_RESOLUTION)])


def _sensible(stated: object) -> Dpi | None:
    x, y = (float(value) for value in stated)  # type: ignore[attr-defined]
    return (x, y) if all(math.isfinite(value) and 1 <= value <= _MOST_DPI for value in (x, y)) else None


def _loaded(exif: bytes) -> Image.Exif:
    loaded = Image.Exif()
    loaded.load(exif)
    return loaded


def _unless_damaged(read: Callable[[], Value]) -> Value | None:
    """The result of `read`. None if Pillow fails on damaged metadata (struct.error, KeyError, TypeError and others)."""
    try:
        return read()
    except Exception:
        return None
