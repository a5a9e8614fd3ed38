"""Makes small files of all formats, and PNGs chunk by chunk."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

from xpsr_jax.images.formats import endings

WIDTH, HEIGHT = 53, 37
PHOTO = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).resize((WIDTH, HEIGHT))
)
FILES = {
    "PNG": {},
    "PNG, interlaced": {"interlace": True},
    "JPEG": {},
    "JPEG, 4:4:4": {"subsampling": 0, "quality": 100},
    "JPEG, restarts": {"restart_marker_blocks": 2},
    "JPEG, progressive": {"progressive": True},
    "WEBP": {},
    "WEBP, lossless": {"lossless": True},
    "TIFF": {},
    "TIFF, deflate": {"compression": "tiff_deflate"},
    "TIFF, LZW": {"compression": "tiff_lzw"},
    "TIFF, JPEG": {"compression": "jpeg"},
    "TIFF, packbits": {"compression": "packbits"},
    "BMP": {},
    "GIF": {},
    "PPM": {},
    "JPEG2000": {},
} | ({"AVIF": {}} if ".avif" in endings() else {})


def stored(kind: str, image: np.ndarray = PHOTO, **more) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind.partition(",")[0], **FILES[kind], **more)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes, size: tuple[int, int] = (WIDTH, HEIGHT), kind: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def rows(image: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in image)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def camera_exif(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    if orientation:
        exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x829A] = 0.01  # exposure, in seconds
    exif.get_ifd(0x8825)[2] = (47.0, 22.0, 1.5)  # latitude
    return exif.tobytes()
