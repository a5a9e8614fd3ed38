"""Reads size and metadata of WebP files from the header. Pillow would allocate memory for the whole picture."""

import struct

from PIL import Image, WebPImagePlugin

from xpsr_jax.files import ByteFile
from xpsr_jax.images.stored import Stored

# Chunks of metadata with their names in `Stored`, and the most bytes of one.
_DESCRIPTIONS = {b"EXIF": "exif", b"XMP ": "xmp", b"ICCP": "icc_profile"}
_MOST_DESCRIPTION = 2**26
_MOST_CHUNKS = 2**16


def is_webp(beginning: bytes) -> bool:
    """Whether a file is a WebP, by its first 12 bytes."""
    return beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"


def open_webp(file: ByteFile) -> Stored:
    """Reads everything except the pixels.

    Raises:
      OSError: the file ends too early.
      struct.error: the file ends within its header.
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
    """The (width, height) from the first 30 bytes of a file."""
    kind, data = header[12:16], header[20:]
    if kind == b"VP8X":
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[1:5])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[6:10])
    return width & 0x3FFF, height & 0x3FFF
