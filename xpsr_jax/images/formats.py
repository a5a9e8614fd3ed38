"""The supported image formats, and the suffixes of image files in a folder."""

import functools
import importlib
import io
from collections.abc import Callable

from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, PpmImagePlugin

from xpsr_jax.errors import UserError
from xpsr_jax.files import ByteFile
from xpsr_jax.images import jpeg, jpeg2000, png, tiff, webp
from xpsr_jax.images.stored import Stored

Check = Callable[[tuple[int, int]], None]
Plugin = Callable[[ByteFile], ImageFile.ImageFile]


def _avif() -> Plugin | None:
    """Pillow's AVIF plugin. None if Pillow is older than 11.3 or was built without AVIF."""
    try:
        module = importlib.import_module("PIL.AvifImagePlugin")
    except ImportError:
        return None
    return functools.partial(_open_avif, module.AvifImageFile) if module.SUPPORTED else None


def _open_avif(plugin: Plugin, file: ByteFile) -> ImageFile.ImageFile:
    """Opens an AVIF picture. If that fails, opens it without EXIF: damaged EXIF makes libavif and Pillow refuse it."""
    try:
        return plugin(file)
    except Exception:
        file.seek(0)
        head, mark, pixels = file.read().partition(b"mdat")
        return plugin(io.BytesIO(head.replace(b"Exif", b"none") + mark + pixels))


_AVIF = _avif()
_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", *((".avif",) if _AVIF else ())),
)
_BEGINNINGS: tuple[tuple[bytes, Plugin], ...] = (
    *((begin, GifImagePlugin.GifImageFile) for begin in (b"GIF87a", b"GIF89a")),
    (b"BM", BmpImagePlugin.BmpImageFile),
    *((b"P%d" % kind, PpmImagePlugin.PpmImageFile) for kind in range(1, 7)),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def endings() -> tuple[str, ...]:
    """The suffixes of image files when a folder is searched. A file that is named directly may have any suffix."""
    return _ENDINGS + ((".heic", ".heif") if _heif() else ())


def open_stored(file: ByteFile, name: object, check: Check) -> Stored:
    """Reads the header of a picture in any supported format. The first bytes determine the format.

    `Image.open` is not used. It opens formats that start other programs (EPS) or that decode while opening (ICO), and
    its limit of pixels applies to the whole process.

    Args:
      file: the file.
      name: the file's name. Some raw files can only be recognised by their suffix.
      check: raises UserError for a (width, height) that is too large. It is called before anything is decoded.

    Raises:
      UserError: the format is not supported, or it is a camera's raw file.
    """
    beginning = file.read(32)
    file.seek(0)
    if beginning.startswith(png.BEGINNING):
        stored = png.open_png(file)
    elif beginning.startswith(jpeg.BEGINNING):
        stored = jpeg.open_jpeg(file)
    elif beginning.startswith(jpeg2000.BEGINNINGS):
        stored = jpeg2000.open_jpeg2000(file)
    else:
        tiff.refuse_raw(beginning, name)
        if beginning[:4] in tiff.BEGINNINGS:
            return tiff.open_tiff(file, check)
        stored = webp.open_webp(file) if webp.is_webp(beginning) else _with_pillow(file, _plugin(beginning))
    check(stored.size)
    return stored


def _plugin(beginning: bytes) -> Plugin:
    for begins, plugin in _BEGINNINGS:
        if beginning.startswith(begins):
            return plugin
    if beginning[4:8] == b"ftyp":
        brand = beginning[8:12]
        if _AVIF and brand in (b"avif", b"avis"):
            return _AVIF
        if brand in _HEIF_BRANDS:
            known = _heif() or (_AVIF if brand in (b"mif1", b"msf1") else None)
            if known is not None:
                return known
            raise UserError("HEIF needs a registered Pillow plugin such as pillow-heif; or convert it to JPEG or PNG")
    raise UserError("not an image, or an unsupported format")


def _heif() -> Plugin | None:
    """The HEIF plugin, such as pillow-heif, if the program has registered one with Pillow."""
    if "HEIF" not in Image.OPEN:
        return None
    factory, _ = Image.OPEN["HEIF"]
    return lambda file: factory(file, "")


def _with_pillow(file: ByteFile, plugin: Plugin) -> Stored:
    """Opens a picture with a Pillow plugin that reads only the header when it opens a file."""
    image = plugin(file)

    def decode() -> Image.Image:
        image.load()
        return image

    info = image.info
    return Stored(image.size, decode, info.get("exif"), info.get("xmp"), info.get("icc_profile"), info.get("dpi"))
