"""WebP files: size and descriptions from the header. Pillow takes memory for the whole picture when it opens one."""

import struct

from PIL import Image, WebPImagePlugin

from xpsr_jax.files import ByteFile
from xpsr_jax.images.stored import Stored

# Chunks that describe the picture, by the names of `Stored`, and the most bytes that one may have.
_DESCRIPTIONS = {b"EXIF": "exif", b"XMP ": "xmp", b"ICCP": "icc_profile"}
_MOST_DESCRIPTION = 2**26
_MOST_CHUNKS = 2**16


def is_webp(beginning: bytes) -> bool:
    """By a file's first 12 bytes."""
    return beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"


def open_webp(file: ByteFile) -> Stored:
    """Reads everything but the pixels.

    Raises:
      OSError: the file ends too early.
      struct.error: its header does.
    """
    header = file.read(30)
    end = 8 + struct.unpack("<I", header[4:8])[0]
    if file.seek(0, 2) < end:
        raise OSError("the file ends too early")

    def decode() -> Image.Image:
        file.seek(0)
        image = WebPImagePlugin.WebPImageFile(file)
        image.load()
        return image

    return Stored(_size(header), decode, **_descriptions(file, end))


def _descriptions(file: ByteFile, end: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    position = 12
    for _ in range(_MOST_CHUNKS):
        if position + 8 > end:
            break
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if (name := _DESCRIPTIONS.get(kind)) and length <= _MOST_DESCRIPTION:
            found.setdefault(name, file.read(length))
        position += 8 + length + length % 2
    return found


def _size(header: bytes) -> tuple[int, int]:
    """(width, height), of a file's first 30 bytes."""
    kind, data = header[12:16], header[20:]
    if kind == b"VP8X":
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[1:5])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[6:10])
    return width & 0x3FFF, height & 0x3FFF
