"""Hostile picture files: damaged, enormous, odd, or not pictures at all. If a picture has a size, it is 16 x 16.

`PICTURES` maps a file's name to the function that makes it and to the expected outcome. True: it is read. False: it is
refused. None: both are right.
"""

import io
import os
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

Make = Callable[[Path], None]
SIDE = 16
PNG = b"\x89PNG\r\n\x1a\n"
# An escape sequence in names and texts. It must not reach the terminal.
ESCAPE = "\x1b[31m"


def pixels(seed: int, shape: tuple[int, ...] = (SIDE, SIDE, 3), dtype: type = np.uint8) -> np.ndarray:
    high = 256 if dtype is np.uint8 else 65536
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def encoded(kind: str, seed: int, mode: str = "RGB", **options: object) -> bytes:
    """A complete picture that is different for each seed."""
    image = Image.fromarray(pixels(seed)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, *, check: int | None = None) -> bytes:
    check = zlib.crc32(kind + content) if check is None else check
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(PNG)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(seed: int, *, before: tuple[bytes, ...] = (), after: tuple[bytes, ...] = ()) -> bytes:
    """A PNG with additional chunks before or after its pixels."""
    header, *pixel_chunks, end = chunks(encoded("PNG", seed))
    parts = [chunk(*header), *before, *(chunk(*each) for each in pixel_chunks), *after, chunk(*end)]
    return PNG + b"".join(parts)


def png_header(width: int, height: int, depth: int = 8, kind: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace))


def empty_png(width: int, height: int, depth: int, kind: int) -> bytes:
    """A complete black PNG. If it is large, it is a decompression bomb."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    packer, rows = zlib.compressobj(1), []
    row = bytes(1 + (width * bits + 7) // 8)
    for _ in range(height):
        rows.append(packer.compress(row))
    rows.append(packer.flush())
    return PNG + png_header(width, height, depth, kind) + chunk(b"IDAT", b"".join(rows)) + chunk(b"IEND", b"")


def flipped(data: bytes, at: float, bit: int = 3) -> bytes:
    """The data with one changed bit, at that fraction of its length."""
    changed = bytearray(data)
    changed[int(at * (len(data) - 1))] ^= 1 << bit
    return bytes(changed)


def flipped_pixels(seed: int, at: float, *, late_exif: bool = False) -> bytes:
    """A PNG in which one bit of the compressed pixels is wrong. The checksum is that of the right pixels."""
    parts = [PNG]
    for kind, content in chunks(encoded("PNG", seed)):
        if kind == b"IEND" and late_exif:
            parts.append(chunk(b"eXIf", exif({0x0112: 1})))
        damaged = flipped(content, at) if kind == b"IDAT" else content
        parts.append(chunk(kind, damaged, check=zlib.crc32(kind + content)))
    return b"".join(parts)


def exif(tags: dict[int, object]) -> bytes:
    """EXIF without its prefix "Exif"."""
    made = Image.Exif()
    for tag, value in tags.items():
        made[tag] = value
    return made.tobytes().removeprefix(b"Exif\0\0")


def raw_exif(*entries: tuple[int, int, int, bytes], next_ifd: int = 0) -> bytes:
    """EXIF with these entries (tag, type, count, four bytes of value), which may be invalid."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", next_ifd)


EXIFS = {
    "orientation-as-text": raw_exif((0x0112, 2, 4, b"six\0")),
    "orientation-99": raw_exif((0x0112, 3, 1, struct.pack("<I", 99))),
    "orientation-rational": raw_exif((0x0112, 5, 1, struct.pack("<I", 4))),
    "orientation-twice": raw_exif((0x0112, 3, 2, struct.pack("<HH", 6, 6))),
    "beyond-its-end": raw_exif((0x8769, 4, 1, struct.pack("<I", 2**31))),
    "loop": raw_exif((0x8769, 4, 1, struct.pack("<I", 8)), next_ifd=8),
    "many-values": raw_exif((0x0112, 3, 2**32 - 1, b"\0\0\0\0")),
    "unknown-type": raw_exif((0x0112, 77, 1, b"\1\0\0\0"), (0x011A, 5, 1, b"\xff\xff\xff\xff")),
    "noise": bytes(pixels(7, (300,))),
    "cut-short": exif({0x0112: 6, 0x010E: "a" * 50})[:20],
    "empty": b"",
}


def jpeg_with(seed: int, *segments: tuple[int, bytes]) -> bytes:
    data = encoded("JPEG", seed, quality=95)
    extra = b"".join(struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content for kind, content in segments)
    return data[:2] + extra + data[2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG", 3))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff(*entries: tuple[int, int, int, int], next_ifd: int = 0, behind: bytes = b"\0" * 768) -> bytes:
    """A TIFF with one directory. Entries are (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", next_ifd) + behind


def plain_tiff(**changes: int) -> bytes:
    """A TIFF with 16 x 16 uncompressed grey pixels, and with some changed tags."""
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "strip": 273}
    tags |= {"samples": 277, "rows": 278, "bytes": 279, "orientation": 274, "subfile": 254, "make": 271}
    values = {"width": SIDE, "height": SIDE, "bits": 8, "compression": 1, "photometric": 1, "strip": 200}
    values |= {"samples": 1, "rows": SIDE, "bytes": SIDE * SIDE} | changes
    return tiff(*((tags[name], 4, 1, value) for name, value in values.items()))


def planar_tiff() -> bytes:
    """A TIFF with three separate planes of 16 bits, which Pillow cannot read."""
    at, plane = 8 + 2 + 12 * 10 + 4, SIDE * SIDE * 2
    values = struct.pack("<3I3I3H", *(at + 32 + plane * i for i in range(3)), *[plane] * 3, 16, 16, 16).ljust(32, b"\0")
    return tiff(
        *((256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 3, at + 24), (259, 3, 1, 1), (262, 3, 1, 2), (284, 3, 1, 2)),
        *((273, 4, 3, at), (277, 3, 1, 3), (278, 4, 1, SIDE), (279, 4, 3, at + 12)),
        behind=values + pixels(9, (3 * SIDE * SIDE,), np.uint16).tobytes(),
    )


def raw_file() -> bytes:
    """A camera's raw file: a reduced picture first, and DNG's version number."""
    return tiff(
        *((254, 4, 1, 1), (256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1)),
        *((273, 4, 1, 300), (277, 4, 1, 1), (278, 4, 1, SIDE), (279, 4, 1, SIDE * SIDE), (50706, 1, 4, 0x0401)),
    )


def with_text(kind: bytes, content: bytes) -> bytes:
    return png(21, before=(chunk(kind, content),))


def packed_zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def animated_gif() -> bytes:
    frames = [Image.fromarray(pixels(seed)) for seed in (1, 2, 3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def mpo() -> bytes:
    frames = [Image.fromarray(pixels(seed)) for seed in (1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def apng() -> bytes:
    frames = [Image.fromarray(pixels(seed)) for seed in (1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def deep_png(kind: int, samples: int, rows: int = SIDE) -> bytes:
    values = pixels(4, (rows, SIDE * samples), np.uint16).astype(">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    return PNG + png_header(SIDE, SIDE, 16, kind) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bmp(width: int, height: int, bits: int = 24, compression: int = 0, data: bytes = b"") -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + header + data


def of_bytes(make: Callable[[], bytes]) -> Make:
    def write(path: Path) -> None:
        path.write_bytes(make())

    return write


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(PNG)
        file.truncate(2**40)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(os.path.dirname(path))  # the path of a socket can have at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.basename(path))
    finally:
        os.chdir(here)


def _loop(path: Path) -> None:
    os.symlink(os.path.basename(path), path)


_BYTES: dict[str, tuple[Callable[[], bytes], bool | None]] = {
    # PNG: pixels.
    **{f"flipped-{i}.png": (lambda i=i: flipped_pixels(i, i / 11), False) for i in range(12)},
    **{
        f"flipped-with-late-exif-{i}.png": (lambda i=i: flipped_pixels(i, 0.1 + i / 5, late_exif=True), False)
        for i in range(4)
    },
    **{f"cut-{p}.png": (lambda p=p: encoded("PNG", p)[: p * 9], False) for p in (0, 1, 2, 4, 8, 16, 32, 64)},
    "late-exif.png": (lambda: png(5, after=(chunk(b"eXIf", exif({0x0112: 3})),)), True),
    "no-pixels.png": (lambda: PNG + png_header(SIDE, SIDE) + chunk(b"IEND", b""), False),
    "few-pixels.png": (
        lambda: PNG + png_header(SIDE, SIDE) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""),
        False,
    ),
    "no-size.png": (lambda: PNG + png_header(0, 0) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""), False),
    "depth-3.png": (lambda: PNG + png_header(SIDE, SIDE, 3) + chunk(b"IEND", b""), False),
    "no-palette.png": (
        lambda: PNG + png_header(8, 8, 8, 3) + chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND", b""),
        None,
    ),
    "claims-4-gigapixels.png": (lambda: PNG + png_header(65535, 65535) + chunk(b"IEND", b""), False),
    "claims-2-to-the-31.png": (lambda: PNG + png_header(2**31 - 1, 2**31 - 1) + chunk(b"IEND", b""), False),
    "bomb-of-1-bit.png": (lambda: empty_png(30_000, 30_000, 1, 0), False),
    "bomb-of-rgba.png": (lambda: empty_png(16_000, 5_000, 8, 6), False),
    "bomb-of-one-row.png": (lambda: empty_png(2**26 + 1, 1, 1, 0), False),
    "deep-grey.png": (lambda: deep_png(0, 1), True),
    "deep-rgb.png": (lambda: deep_png(2, 3), True),
    "deep-alpha.png": (lambda: deep_png(6, 4), True),
    **{
        f"half-its-rows-{kind}.png": (
            lambda kind=kind: (
                PNG
                + png_header(SIDE, SIDE, 8, kind)
                + chunk(b"IDAT", zlib.compress(bytes(8 * (1 + SIDE * {0: 1, 2: 3, 4: 2, 6: 4}[kind]))))
                + chunk(b"IEND", b"")
            ),
            False,
        )
        for kind in (0, 2, 4, 6)
    },
    "interlaced-few-pixels.png": (
        lambda: PNG + png_header(SIDE, SIDE, 8, 0, 1) + chunk(b"IDAT", zlib.compress(bytes(285))) + chunk(b"IEND", b""),
        False,
    ),
    "interlaced.png": (
        lambda: PNG + png_header(SIDE, SIDE, 8, 0, 1) + chunk(b"IDAT", zlib.compress(bytes(286))) + chunk(b"IEND", b""),
        True,
    ),
    "deep-few-pixels.png": (lambda: deep_png(2, 3, rows=SIDE // 2), False),
    "deep-few-grey-pixels.png": (lambda: deep_png(0, 1, rows=SIDE // 2), False),
    "one-pixel.png": (lambda: empty_png(1, 1, 8, 2), None),
    "one-bit.png": (lambda: encoded("PNG", 1, "1"), True),
    "grey-and-alpha.png": (lambda: encoded("PNG", 1, "LA"), True),
    "palette.png": (lambda: encoded("PNG", 1, "P", transparency=0), True),
    "all-invisible.png": (lambda: empty_png(SIDE, SIDE, 8, 6), True),
    "animation.png": (apng, True),
    "animation-cut.png": (lambda: apng()[:-40], None),
    # PNG: everything else.
    "text-of-2-megabytes.png": (lambda: with_text(b"tEXt", b"Comment\0" + b"a" * 2**21), True),
    "text-bomb.png": (lambda: with_text(b"zTXt", b"Comment\0\0" + packed_zeros(80)), True),
    "xmp-of-2-megabytes.png": (lambda: with_text(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 700_000), True),
    "profile-bomb.png": (lambda: with_text(b"iCCP", b"name\0\0" + packed_zeros(200)), True),
    "profile-of-noise.png": (lambda: with_text(b"iCCP", b"name\0\0" + zlib.compress(bytes(pixels(1, (999,))))), True),
    "profile-not-packed.png": (lambda: with_text(b"iCCP", b"name\0\0" + b"nothing"), True),
    "unknown-chunk.png": (lambda: with_text(b"quIR", b"?"), True),
    "huge-chunk.png": (lambda: PNG + png_header(SIDE, SIDE) + struct.pack(">I", 2**31 - 1) + b"IDAT", False),
    "many-chunks.png": (lambda: png(6, before=(chunk(b"tEXt", b"a\0b"),) * 20_000), None),
    "density-0.png": (lambda: with_text(b"pHYs", struct.pack(">IIB", 0, 0, 1)), True),
    **{
        f"exif-{name}.png": (lambda content=content: png(8, before=(chunk(b"eXIf", content),)), True)
        for name, content in EXIFS.items()
    },
    # JPEG.
    **{
        f"exif-{name}.jpg": (lambda content=content: jpeg_with(8, (0xE1, b"Exif\0\0" + content)), True)
        for name, content in EXIFS.items()
    },
    **{f"cut-{p}.jpg": (lambda p=p: encoded("JPEG", p)[:p], False) for p in (2, 4, 100, 400, 620)},
    "cut-in-a-scan.jpg": (lambda: encoded("JPEG", 2, quality=95)[:-200], False),
    "cut-in-a-progressive-scan.jpg": (lambda: encoded("JPEG", 2, progressive=True, quality=95)[:-300], False),
    "claims-4-gigapixels.jpg": (lambda: jpeg_of_size(65535, 65535), False),
    "no-size.jpg": (lambda: jpeg_of_size(0, 0), False),
    "tables-damaged.jpg": (lambda: encoded("JPEG", 1).replace(b"\xff\xc4", b"\xff\xc5", 2), False),
    "profile-of-noise.jpg": (
        lambda: jpeg_with(1, (0xE2, b"ICC_PROFILE\0\1\1" + bytes(pixels(1, (500,))))),
        True,
    ),
    "xmp-of-noise.jpg": (lambda: jpeg_with(1, (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"\xff<" * 9)), True),
    "cmyk.jpg": (lambda: encoded("JPEG", 1, "CMYK"), True),
    "grey.jpg": (lambda: encoded("JPEG", 1, "L"), True),
    "behind-its-end.jpg": (lambda: encoded("JPEG", 1) + b"\0" * 5000, True),
    "a-phones.mpo": (mpo, True),
    "a-phones-cut.mpo": (lambda: mpo()[:-100], None),
    "a-jpeg.png": (lambda: encoded("JPEG", 1), True),
    # TIFF.
    "plain.tif": (plain_tiff, True),
    "lzw.tif": (lambda: encoded("TIFF", 1, compression="tiff_lzw"), True),
    "cut.tif": (lambda: plain_tiff()[:300], False),
    "lzw-cut.tif": (lambda: encoded("TIFF", 1, compression="tiff_lzw").replace(b"\x80", b"\xff"), None),
    "directory-beyond-its-end.tif": (lambda: b"II*\0" + struct.pack("<I", 2**31), False),
    "directory-loop.tif": (lambda: tiff((256, 4, 1, 16), next_ifd=8), False),
    "no-directory.tif": (lambda: b"II*\0\0\0\0\0", False),
    "claims-4-gigapixels.tif": (lambda: plain_tiff(width=65535, height=65535, rows=65535), False),
    "strips-beyond-its-end.tif": (lambda: plain_tiff(strip=2**31), False),
    "no-rows.tif": (lambda: plain_tiff(rows=0), None),
    "bits-7.tif": (lambda: plain_tiff(bits=7), None),
    "compression-9999.tif": (lambda: plain_tiff(compression=9999), False),
    "orientation-77.tif": (lambda: plain_tiff(orientation=77), True),
    "values-without-end.tif": (lambda: tiff((256, 4, 1, 16), (257, 4, 1, 16), (273, 4, 2**31, 8)), False),
    "floats.tif": (lambda: _saved(Image.fromarray(pixels(1, (SIDE, SIDE)).astype(np.float32)), "TIFF"), False),
    "deep-grey.tif": (lambda: _saved(Image.fromarray(pixels(1, (SIDE, SIDE), np.uint16)), "TIFF"), True),
    "deep-planes.tif": (planar_tiff, None),
    "deep-planes-cut.tif": (lambda: planar_tiff()[:-100], False),
    "a-cameras.dng": (raw_file, False),
    "a-cameras.tif": (raw_file, False),
    # Others.
    "animation.gif": (animated_gif, True),
    "cut.gif": (lambda: animated_gif()[:60], False),
    "claims-4-gigapixels.gif": (lambda: b"GIF89a\xff\xff\xff\xff\0\0\0;", False),
    "frame-elsewhere.gif": (
        lambda: b"GIF89a\x10\0\x10\0\0\0\0," + struct.pack("<HHHHB", 60000, 60000, 16, 16, 0) + b"\2\2D\1\0;",
        False,
    ),
    "plain.bmp": (lambda: bmp(SIDE, SIDE, data=bytes(SIDE * SIDE * 3)), True),
    "upside-down.bmp": (lambda: bmp(SIDE, -SIDE, data=bytes(SIDE * SIDE * 3)), True),
    "claims-gigapixels.bmp": (lambda: bmp(2**30, 2**30), False),
    "negative.bmp": (lambda: bmp(-SIDE, SIDE, data=bytes(768)), False),
    "cut.bmp": (lambda: bmp(SIDE, SIDE, data=bytes(100)), False),
    "bits-0.bmp": (lambda: bmp(SIDE, SIDE, bits=0), False),
    "runs-too-long.bmp": (lambda: bmp(SIDE, SIDE, bits=8, compression=1, data=b"\xff\1" * 400), None),
    "plain.ppm": (lambda: b"P6 16 16 255\n" + bytes(768), True),
    "text.ppm": (lambda: b"P3 2 2 255 " + b"9 " * 12, None),
    "cut.ppm": (lambda: b"P6 16 16 255\n" + bytes(10), False),
    "claims-gigapixels.ppm": (lambda: b"P6 99999 99999 255\n", False),
    "digits-without-end.ppm": (lambda: b"P6 " + b"9" * 100_000 + b" 16 255\n", False),
    "comment-without-end.ppm": (lambda: b"P6 #" + b"a" * 2**20, False),
    "negative.pgm": (lambda: b"P5 -16 16 255\n" + bytes(256), False),
    "deep.pgm": (lambda: b"P5 16 16 65535\n" + bytes(512), True),
    "plain.webp": (lambda: encoded("WEBP", 1, lossless=True), True),
    "cut.webp": (lambda: encoded("WEBP", 1, lossless=True)[:-300], False),
    "flipped.webp": (lambda: flipped(encoded("WEBP", 1, lossless=True), 0.5), None),
    "claims-gigapixels.webp": (
        lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + b"VP8 \0\0\0\0",
        False,
    ),
    "exif-of-noise.webp": (lambda: encoded("WEBP", 1, exif=b"Exif\0\0" + EXIFS["noise"]), True),
    "damaged.jp2": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(pixels(1, (400,))), False),
    "damaged.avif": (lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(pixels(1, (400,))), False),
    # Not pictures, or not to be opened.
    "an-icon.png": (lambda: _saved(Image.fromarray(pixels(1)), "ICO"), False),
    "an-icon-of-gigapixels.png": (
        lambda: b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 2**20, 22) + bmp(2**15, 2**15)[14:],
        False,
    ),
    "postscript.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n(x) print\n", False),
    "postscript.jpg": (lambda: b"\xc5\xd0\xd3\xc6" + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", False),
    "a-document.jpg": (lambda: b"%PDF-1.7\n1 0 obj\n", False),
    "a-drawing.png": (
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        False,
    ),
    "a-page.jpg": (lambda: b"<!doctype html><script>alert(1)</script>", False),
    "noise.png": (lambda: bytes(pixels(1, (5000,))), False),
    "noise.jpg": (lambda: b"\xff\xd8\xff" + bytes(pixels(1, (5000,))), False),
    "zeros.webp": (lambda: bytes(5000), False),
    "text.tiff": (lambda: b"it is no picture\n", False),
    "an-archive.png": (lambda: b"PK\3\4" + bytes(100), False),
}


def _saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


# Files with odd names.
_NAMES = {
    f"{ESCAPE}red.png": True,
    "<script>alert(1)<script>.png": True,
    "a\nline.png": True,
    "half \udcff\udcfe.png": True,  # bytes that are not UTF-8
    unicodedata.normalize("NFD", "ü é.png"): True,
    "[a].png": True,
    "{a}.png": True,
    "-x.png": True,
    "1²2.png": True,
    "a  b\t.png": True,
    "n" * 251 + ".png": True,
    "é" * 125 + ".png": True,
    "%s%n{0}.png": True,
    "$(touch hacked).png": True,
    "CON.png": True,
}

PICTURES: dict[str, tuple[Make, bool | None]] = (
    # The suffix is also part of the stem, so that no two results have the same name.
    {f"{name.replace('.', '-')}{Path(name).suffix}": (of_bytes(make), right) for name, (make, right) in _BYTES.items()}
    | {name: (of_bytes(lambda i=i: encoded("PNG", 100 + i)), right) for i, (name, right) in enumerate(_NAMES.items())}
    | {
        "a-pipe.png": (lambda path: os.mkfifo(path), False),
        "a-socket.png": (_socket, False),
        "to-zeros.png": (lambda path: os.symlink("/dev/zero", path), False),
        "to-a-terminal.png": (lambda path: os.symlink("/dev/tty", path), False),
        "to-itself.png": (_loop, False),
        "to-nothing.png": (lambda path: os.symlink("nothing", path), False),
        "a-terabyte.png": (_sparse, False),
    }
)


def make_pictures(folder: Path, names: list[str] | None = None) -> None:
    """Writes all pictures, or those with these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES if names is None else names:
        make, _ = PICTURES[name]
        make(folder / name)


assert PngImagePlugin.MAX_TEXT_CHUNK == 2**20, "the large texts here must be larger than Pillow's limit"
