"""Reads PNG files chunk by chunk. Pillow gets only the chunks that the pixels need, so others cannot break it.

Pillow alone has these faults: it decodes the pixels to read EXIF that comes after them. It returns a part of a damaged
picture at the second attempt. It refuses pictures with much text. And it does not verify the checksums of pixels.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from xpsr_jax.files import ByteFile
from xpsr_jax.images.pixels import to_8_bits
from xpsr_jax.images.stored import Stored

BEGINNING = b"\x89PNG\r\n\x1a\n"
# The chunks that the pixels need.
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# OpenCV would also log errors that it raises or returns.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# The number of samples per pixel for each colour type. And the passes of an interlaced picture: start and step (x, y).
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_WHOLE = ((0, 0, 1, 1),)
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# The most bytes of EXIF or XMP, and of a colour profile.
_MOST_TEXT, _MOST_PROFILE = 2**20, 2**26
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
_MOST_CHUNKS = 2**20
_INCH = 0.0254  # metres


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    length: int


def open_png(file: ByteFile) -> Stored:
    """Reads all chunks except the pixels.

    Raises:
      OSError: the file ends too early.
    """
    chunks = list(_chunks(file))
    if not chunks or chunks[0].kind != b"IHDR" or chunks[0].length != 13:
        raise OSError("it does not begin with a header")
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", _content(file, chunks[0]))
    found: dict[str, object] = {}
    for chunk in chunks:
        with contextlib.suppress(OSError, ValueError, zlib.error, struct.error):  # Damaged metadata is ignored.
            found |= _metadata(file, chunk)

    def decode() -> Image.Image:
        _check_pixels(file, chunks, _raw_bytes(width, height, depth * _SAMPLES.get(kind, 1), bool(interlaced)))
        data = _essence(file, chunks)
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        image.load()
        deep = depth == 16 and kind != 0
        return _of_16_bits(data) if deep else image

    return Stored((width, height), decode, **found)  # type: ignore[arg-type]


def _chunks(file: ByteFile) -> Iterator[_Chunk]:
    """All chunks up to the last. Only their headers are read."""
    position, end = len(BEGINNING), file.seek(0, io.SEEK_END)
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            raise OSError("the file ends too early")
        length, kind = struct.unpack(">I4s", header)
        if position + 12 + length > end:
            raise OSError("the file ends too early")
        yield _Chunk(kind, position + 8, length)
        if kind == b"IEND":
            return
        position += 12 + length
    raise OSError("it has too many parts")


def _content(file: ByteFile, chunk: _Chunk) -> bytes:
    """The content of a chunk. Raises OSError if its checksum is wrong."""
    file.seek(chunk.start)
    content, check = file.read(chunk.length), file.read(4)
    if struct.pack(">I", zlib.crc32(content, zlib.crc32(chunk.kind))) != check:
        raise OSError(f"the checksum of {chunk.kind.decode('latin-1')} is wrong")
    return content


def _metadata(file: ByteFile, chunk: _Chunk) -> dict[str, object]:
    """The metadata in a chunk, as arguments of `Stored`."""
    if chunk.length > _MOST_PROFILE or (chunk.kind != b"iCCP" and chunk.length > _MOST_TEXT):
        return {}
    if chunk.kind == b"eXIf":
        return {"exif": _content(file, chunk)}
    if chunk.kind == b"iCCP":
        _, _, packed = _content(file, chunk).partition(b"\0")
        return {"icc_profile": _unpacked(packed[1:], _MOST_PROFILE)}
    if chunk.kind == b"pHYs":
        x, y, unit = struct.unpack(">IIB", _content(file, chunk))
        return {"dpi": (x * _INCH, y * _INCH)} if unit == 1 else {}
    if chunk.kind in (b"tEXt", b"zTXt", b"iTXt"):
        return _text(chunk.kind, _content(file, chunk))
    return {}


def _text(kind: bytes, content: bytes) -> dict[str, object]:
    """XMP or EXIF in a text chunk. ImageMagick wrote EXIF as text before PNG had a chunk for it."""
    keyword, _, text = content.partition(b"\0")
    if keyword not in (_XMP, _RAW_EXIF):
        return {}
    if kind == b"iTXt":
        packed, (_, _, text) = text[:1] == b"\1", text[2:].split(b"\0", 2)
        text = _unpacked(text, _MOST_TEXT) if packed else text
    elif kind == b"zTXt":
        text = _unpacked(text[1:], _MOST_TEXT)
    return {"xmp": text} if keyword == _XMP else {"exif": bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))}


def _of_16_bits(data: bytes) -> Image.Image:
    """Decodes an RGB or RGBA picture with 16 bits per channel, and rounds it to 8. Pillow would cut the lower 8 bits.

    Raises:
      OSError: it cannot be decoded.
    """
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise OSError("its pixels cannot be decoded")
    order = cv2.COLOR_BGRA2RGBA if values.shape[-1] == 4 else cv2.COLOR_BGR2RGB
    return Image.fromarray(cv2.cvtColor(to_8_bits(values), order))


def _unpacked(packed: bytes, most: int) -> bytes:
    """Decompresses bytes. Raises ValueError if the result has more than `most` bytes."""
    stream = zlib.decompressobj()
    unpacked = stream.decompress(packed, most)
    if stream.unconsumed_tail:
        raise ValueError("it is too large")
    return unpacked


def _essence(file: ByteFile, chunks: list[_Chunk]) -> bytes:
    """The file with only the chunks that the pixels need, each with the right checksum."""
    essence = io.BytesIO()
    essence.write(BEGINNING)
    for chunk in chunks:
        if chunk.kind in _PIXELS:
            content = _content(file, chunk)
            essence.write(struct.pack(">I4s", chunk.length, chunk.kind) + content)
            essence.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(chunk.kind))))
    return essence.getvalue()


def _raw_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """The number of bytes of a picture's decompressed rows."""
    total = 0
    for left, top, across, down in _PASSES if interlaced else _WHOLE:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _check_pixels(file: ByteFile, chunks: list[_Chunk], expected: int) -> None:
    """Raises OSError or zlib.error if rows are missing. Pillow does not notice that if the compressed data is whole."""
    stream, found = zlib.decompressobj(), 0
    for chunk in chunks:
        if chunk.kind == b"IDAT":
            packed = _content(file, chunk)
            while packed and not stream.eof and found < expected:
                found += len(stream.decompress(packed, 2**20))
                packed = stream.unconsumed_tail
    if found < expected:
        raise OSError("rows of pixels are missing")
