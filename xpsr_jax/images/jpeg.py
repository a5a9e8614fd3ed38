"""Reads JPEG files segment by segment. Pillow gets only the segments that the pixels need, so others cannot break it.

In an MPO file (a phone's JPEG with several pictures), the first picture is read.
"""

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, JpegImagePlugin

from xpsr_jax.files import ByteFile
from xpsr_jax.images.stored import Stored

BEGINNING = b"\xff\xd8\xff"
_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_SCAN, _END = 0xDA, 0xD9
_RESTARTS = range(0xD0, 0xD8)
# Frames: all of 0xC0 to 0xCF, except Huffman tables, extensions and arithmetic coding.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_EXIF, _XMP, _PROFILE = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_CENTIMETRES = 2.54  # in an inch
_MOST_SEGMENTS = 2**16
# The decoder reads a few bytes beyond the last pixel. These are 1 bits, which are not a valid code.
_READ_AHEAD = b"\xff\x00" * 8


class _Segment(NamedTuple):
    kind: int
    content: bytes


def open_jpeg(file: ByteFile) -> Stored:
    """Reads everything before the pixels.

    Raises:
      OSError: the file ends too early, or is not a JPEG.
    """
    segments = list(_segments(file))
    scans = file.tell()
    frame = next((segment for segment in segments if segment.kind in _FRAMES), None)
    if frame is None or len(frame.content) < 6:
        raise OSError("its size is missing")
    height, width = struct.unpack(">HH", frame.content[1:5])

    def decode() -> Image.Image:
        file.seek(scans)
        pixels = file.read()
        one_scan = _is_one_scan(segments, frame)
        pixels = pixels[: _end_of_pixels(pixels, several=not one_scan)] + (_READ_AHEAD if one_scan else b"")
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(_essence(segments) + pixels))
        image.load()
        return image

    contents = {kind: [s.content for s in segments if s.kind == kind] for kind in (_APP0, _APP1, _APP2)}
    exif = b"".join(content.removeprefix(_EXIF) for content in contents[_APP1] if content.startswith(_EXIF))
    xmp = next((content.removeprefix(_XMP) for content in contents[_APP1] if content.startswith(_XMP)), None)
    return Stored((width, height), decode, exif or None, xmp, _profile(contents[_APP2]), _dpi(contents[_APP0]))


def _segments(file: ByteFile) -> Iterator[_Segment]:
    """The segments before the pixels, and the segment that begins the pixels."""
    file.seek(2)
    for _ in range(_MOST_SEGMENTS):
        while (byte := file.read(1)) not in (b"\xff", b""):  # Some writers leave bytes between segments.
            pass
        while byte == b"\xff":
            byte = file.read(1)
        if not byte:
            raise OSError("the file ends too early")
        kind = byte[0]
        if kind in (0x00, 0x01, *_RESTARTS):
            continue
        if kind == _END:
            raise OSError("it has no pixels")
        (length,) = struct.unpack(">H", file.read(2).ljust(2, b"\0"))
        content = file.read(max(0, length - 2))
        if length < 2 or len(content) < length - 2:
            raise OSError("the file ends too early")
        yield _Segment(kind, content)
        if kind == _SCAN:
            return
    raise OSError("it has too many parts")


def _essence(segments: list[_Segment]) -> bytes:
    """The beginning of the file without segments of metadata. Adobe's segment stays, because it defines the colours."""
    needed = [s for s in segments if not (_APP0 < s.kind <= _APP15 or s.kind == _COMMENT) or s.kind == _APP14]
    parts = [struct.pack(">BBH", 0xFF, s.kind, len(s.content) + 2) + s.content for s in needed]
    return b"\xff\xd8" + b"".join(parts)


def _is_one_scan(segments: list[_Segment], frame: _Segment) -> bool:
    """Whether all pixels are in one scan, from top to bottom."""
    scan = segments[-1].content
    return frame.kind in _SEQUENTIAL and scan[:1] == frame.content[5:6]


def _end_of_pixels(pixels: bytes, *, several: bool) -> int:
    """Finds the position at which the picture's last scan ends.

    If the picture has one scan, the end marker is excluded. So if pixels are missing before it, the decoder raises an
    error instead of inventing them. With several scans the decoder needs the marker.

    Raises OSError if there is no end marker, because the file ends too early.
    """
    position = 0
    while (position := pixels.find(b"\xff", position)) >= 0:
        kind = pixels[position + 1] if position + 1 < len(pixels) else None
        if kind in (None, 0x00, 0xFF, *_RESTARTS):
            position += 2 if kind == 0x00 else 1
        elif kind == _END:
            return position + 2 if several else position
        elif not several:
            return position
        else:  # tables of the next scan
            position += 2 + int.from_bytes(pixels[position + 2 : position + 4])
    raise OSError("the file ends too early")


def _profile(segments: list[bytes]) -> bytes | None:
    """The colour profile, which may be in several numbered pieces. None if there is none or a piece is missing."""
    pieces = sorted(content[len(_PROFILE) :] for content in segments if content.startswith(_PROFILE))
    if not pieces or any(len(piece) < 2 for piece in pieces) or pieces[0][1] != len(pieces):
        return None
    return b"".join(piece[2:] for piece in pieces) or None


def _dpi(segments: list[bytes]) -> tuple[float, float] | None:
    jfif = next((content for content in segments if content.startswith(b"JFIF\0") and len(content) >= 12), None)
    if jfif is None:
        return None
    unit, x, y = struct.unpack(">BHH", jfif[7:12])
    scale = {1: 1.0, 2: _CENTIMETRES}.get(unit)
    return None if scale is None else (scale * x, scale * y)
