"""Reads JPEG 2000 files. OpenCV decodes colour pictures with more than 8 bits per channel: Pillow makes white black."""

import cv2
import numpy as np
from PIL import Image, Jpeg2KImagePlugin

from xpsr_jax.files import ByteFile
from xpsr_jax.images.stored import Stored

BEGINNINGS = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")
# The marker at which the header of the pixels begins, and the offset from it to the first channel's number of bits - 1.
# (For signed values, 128 is added to that number. So they are refused as too many bits.)
_HEADER, _BITS = b"\xff\x4f\xff\x51", 42


def open_jpeg2000(file: ByteFile) -> Stored:
    """Reads the header."""
    image = Jpeg2KImagePlugin.Jpeg2KImageFile(file)

    def decode() -> Image.Image:
        image.load()
        if image.mode not in ("RGB", "RGBA"):
            return image
        file.seek(0)
        data = file.read()
        bits = data[data.index(_HEADER) + _BITS]
        return image if bits < 8 else _of_many_bits(data, bits + 1)

    info = image.info
    return Stored(image.size, decode, icc_profile=info.get("icc_profile"), dpi=info.get("dpi"))


def _of_many_bits(data: bytes, bits: int) -> Image.Image:
    """Decodes colours with 9 to 16 bits per channel. Raises OSError if they cannot be decoded."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if bits <= 16 else None
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise OSError(f"JPEG 2000 with {bits} bits per channel is not supported")
    order = cv2.COLOR_BGRA2RGBA if values.shape[-1] == 4 else cv2.COLOR_BGR2RGB
    scaled = np.round(cv2.cvtColor(values, order).astype(np.float32) * np.float32(255 / (2**bits - 1)))
    return Image.fromarray(scaled.astype(np.uint8))
