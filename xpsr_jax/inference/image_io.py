"""Finding, reading and writing image files."""

import contextlib
import glob
import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from xpsr_jax.errors import UserError

# What a folder is searched for. A file named outright may have any name.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".gif"})

# Larger images are refused unless asked for: a file of a few bytes may say that it is of any size.
MAX_PIXELS = 64_000_000
# That limit goes in the place of Pillow's own.
Image.MAX_IMAGE_PIXELS = None


Format = Literal["png", "jpeg", "webp", "tiff"]
SUFFIX_OF: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}

_ORIENTATION = 0x0112
# TIFF's tags of sizes, strips, tiles, compression, samples and profile, which its EXIF has among the others.
_STORAGE = (
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, _ORIENTATION, 277, 278, 279, 284, 317, 320),
    *(322, 323, 324, 325, 338, 339, 347, 530, 532, 700, 34675),
)
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# Whose colour profile is one of RGB values.
_RGB_MODES = ("RGB", "RGBA", "RGBX", "P", "PA")


@dataclass(frozen=True)
class Input:
    """An image file to be restored.

    Attributes:
        path: where it is.
        name: its path below the folder it was found in, or its file name if it was named outright. Outputs are named
            after it.
    """

    path: Path
    name: Path


@dataclass(frozen=True)
class Picture:
    """One picture, upright.

    Attributes:
      rgb: its colours, 8 bits.
      alpha: its transparency; None: opaque everywhere.
      icc_profile: what the colours mean; None: sRGB.
      exif: as bytes, without an orientation; None: none.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None


def list_inputs(paths: Sequence[Path], *, exclude: Path | None = None) -> list[Input]:
    """The image files that `paths` name, folders searched with their subfolders, in natural order (2 before 10).

    What is no file or folder may be a pattern: "photos/**/*.jpg".

    Args:
        exclude: a folder to pass over: the output folder, which may lie within an input folder.

    Raises:
        UserError: a path does not exist, a folder holds no image, or there is no path at all.
    """
    if not paths:
        raise UserError("no input: name at least one image or folder")
    found: dict[Path, Input] = {}
    for path in paths:
        if path.is_dir():
            inputs = [Input(file, file.relative_to(path)) for file in _images_below(path, exclude)]
            if not inputs:
                raise UserError(f"{path}: no image in this folder (looked for {', '.join(sorted(SUFFIXES))})")
        elif path.exists():
            inputs = [Input(path, Path(path.name))]
        elif matches := sorted(map(Path, glob.glob(str(path), recursive=True)), key=natural_order):
            inputs = list_inputs(matches, exclude=exclude)
        else:
            raise UserError(f"{path}: no such file or folder")
        for each in inputs:
            found.setdefault(each.path.resolve(), each)
    return list(found.values())


def read_picture(path: Path, *, max_pixels: int | None = None) -> Picture:
    """Reads an image file, of an animation the first picture.

    Grey, palette and 16-bit pictures become 8-bit RGB. So do CMYK ones, and grey ones with a colour profile, by way of
    that profile, which then no longer holds.

    Raises:
      UserError: it cannot be read, is no image, is damaged, has more than `max_pixels` or floating-point pixels.
    """
    with _opened(path, max_pixels=max_pixels) as image:
        if image.mode == "F":
            raise UserError(f"{path}: floating-point pixels are not supported; save it with 8 or 16 bits")
        profile, exif = image.info.get("icc_profile"), _exif(image)
        image = ImageOps.exif_transpose(image)
        if image.mode in _SIXTEEN_BIT_MODES:
            grey = np.round(np.clip(np.asarray(image, np.float32), 0, 65535) / 257).astype(np.uint8)
            return Picture(np.repeat(grey[..., None], 3, axis=-1), exif=exif)
        alpha = None
        if image.has_transparency_data:
            alpha = np.array(image.convert("RGBA").getchannel("A"))
        if profile and image.mode not in _RGB_MODES:
            image, profile = _to_srgb(image, profile), None
        rgb = np.array((image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB"))
        return Picture(rgb, None if alpha is None or alpha.min() == 255 else alpha, profile, exif)


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The colours of `read_picture`. Raises as that does."""
    return read_picture(path).rgb


def read_size(path: Path, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(height, width) of the picture when upright, from the file's header alone.

    Raises UserError if it cannot be read, is no image, or has more than `max_pixels`.
    """
    with _opened(path, max_pixels=max_pixels) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        return (width, height) if turned else (height, width)


def write_picture(
    path: Path,
    picture: Picture,
    *,
    format: Format = "png",
    quality: int = 95,
    when_complete: Callable[[Path], None] = lambda complete: None,
) -> None:
    """Writes a file that appears under its name only when complete, making its folder if need be.

    Args:
      format: of the file. JPEG has no transparency and loses it.
      quality: of JPEG and WebP, 1 to 100.
      when_complete: is called with the complete file's other name before it gets its own.

    Raises UserError if the system or the format (a WebP is at most 16383 pixels wide) refuses.
    """
    pixels = picture.rgb
    if picture.alpha is not None and format != "jpeg":
        pixels = np.dstack([pixels, picture.alpha])
    options: dict[str, object] = {"icc_profile": picture.icc_profile}
    if picture.exif:
        options["exif"] = picture.exif
    if format in ("jpeg", "webp"):
        options["quality"] = quality
    if format == "jpeg":
        options["subsampling"] = 0
    if format == "tiff":
        options["compression"] = "tiff_deflate"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                Image.fromarray(pixels).save(file, format=format.upper(), **options)
            os.chmod(temporary, 0o666 & ~_umask())
            when_complete(Path(temporary))
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}") from error


def write_png(path: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """`write_picture` of nothing but colours."""
    write_picture(path, Picture(image))


def check_writable(folder: Path) -> None:
    """Makes a folder, and a file in it for a moment: better to raise `UserError` now than after hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write into this folder: {error.strerror or error}") from error


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key under which img2 comes before img10."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part.casefold())
        for part in re.split(r"(\d+)", path.as_posix())
        if part
    ]


def _images_below(folder: Path, exclude: Path | None) -> list[Path]:
    excluded = exclude.resolve() if exclude is not None else None
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and (Path(root) / name).resolve() != excluded
        ]
        files += [
            Path(root) / name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(files, key=natural_order)


@contextlib.contextmanager
def _opened(path: Path, *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """PIL's image. Whatever is wrong with the file, here or while it is decoded, becomes one line: UserError.

    Args:
      max_pixels: a larger one is refused, before it is decoded.
    """
    try:
        # Of what is odd in a file but can be read, Pillow warns at length.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.width * image.height > (max_pixels or MAX_PIXELS):
                raise UserError(
                    f"{path}: {image.width} x {image.height} pixels are more than {(max_pixels or MAX_PIXELS) / 1e6:g} "
                    "million; --max-megapixels allows more"
                )
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image, or of a format that Pillow does not know") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (
        Exception
    ) as error:  # decoders raise all sorts on damaged files: OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"{path}: damaged, or an unsupported kind of image: {error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _exif(image: Image.Image) -> bytes | None:
    """What a file says of how the picture was made, without how it is stored or has to be turned."""
    exif = Image.Exif()
    exif.load(image.getexif().tobytes())
    for tag in _STORAGE:
        exif.pop(tag, None)
    return exif.tobytes() if len(exif) else None


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture in sRGB; without regard to a profile that is broken or of another kind of picture."""
    plain = image.convert("L") if image.mode in ("LA", "La", "1") else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted if converted is not None else image
