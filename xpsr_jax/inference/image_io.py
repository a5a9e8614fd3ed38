"""Finding, reading and writing image files."""

import contextlib
import glob
import io
import itertools
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

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
_ON_ITS_SIDE = (5, 6, 7, 8)
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
        name: its path below the folder it was found in, for a pattern below the part without wildcards, or its file
            name if it was named outright. Outputs are named after it.
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

    What is no file or folder may be a pattern: "photos/**/*.jpg". A file named twice is one input; a link to a file is
    an input of its own.

    Args:
        exclude: a folder to pass over: the output folder, which may lie within an input folder.

    Raises:
        UserError: a path does not exist, a folder holds no image, there is no path at all, or what is put into
            `exclude` would be found the next time.
    """
    if not paths:
        raise UserError("no input: name at least one image or folder")
    found: dict[str, Input] = {}
    for path in paths:
        if path.is_dir():
            inputs = _inputs_below(path, exclude)
        elif path.exists():
            inputs = [Input(path, Path(path.name))]
        else:
            inputs = _inputs_matching(path, exclude)
        for each in inputs:
            found.setdefault(os.path.abspath(each.path), each)
    return list(found.values())


def limit_from_millions(option: str, millions: float) -> int:
    """The number that an option such as --max-megapixels stands for; inf: no limit. Raises UserError unless above 0."""
    if not millions > 0:  # NaN is not
        raise UserError(f"{option} must be above 0, not {millions}")
    return sys.maxsize if math.isinf(millions * 1e6) else max(1, round(millions * 1e6))


def read_picture(path: Path, *, max_pixels: int | None = None) -> Picture:
    """Reads an image file, of an animation the first picture.

    Grey, palette and 16-bit pictures become 8-bit RGB. So do CMYK ones, and grey ones with a colour profile, by way of
    that profile, which then no longer holds. EXIF that is damaged is left out.

    Raises:
      UserError: it cannot be read, is no image, is damaged, has more than `max_pixels` or floating-point pixels.
    """
    with _opened(path, max_pixels=max_pixels) as image:
        if image.mode == "F":
            raise UserError(f"{path}: floating-point pixels are not supported; save it with 8 or 16 bits")
        profile, exif = image.info.get("icc_profile"), _exif(image)
        if _orientation(image) != 1:
            # Which would write EXIF into a copy of `info`, and so fail where it is damaged.
            for key in ("exif", "Raw profile type exif"):
                image.info.pop(key, None)
            image = ImageOps.exif_transpose(image)
        if image.mode in _SIXTEEN_BIT_MODES:
            image = _to_8_bits(image)
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
        # Of a TIFF Pillow gives the upright size, unless it is XMP that says how to turn it.
        upright = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_ORIENTATION) in _ON_ITS_SIDE
        turned = not upright and _orientation(image) in _ON_ITS_SIDE
        width, height = image.size
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
        # Of EXIF, Pillow writes what is in directories of its own, exposure and place, into uncompressed files only.
        options["compression"] = "raw" if picture.exif else "tiff_deflate"
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


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """Sort key under which img2 comes before img10."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part.casefold())
        for part in re.split(r"(\d+)", path.as_posix())
        if part
    ]


def _inputs_below(folder: Path, exclude: Path | None) -> list[Input]:
    _check_apart(folder, folder, exclude)
    excluded = exclude.resolve() if exclude is not None else None
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and (Path(root) / name).resolve() != excluded
        ]
        files += [
            Path(root) / name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not files:
        raise UserError(f"{folder}: no image in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return [Input(file, file.relative_to(folder)) for file in sorted(files, key=natural_order)]


def _inputs_matching(pattern: Path, exclude: Path | None) -> list[Input]:
    """What a pattern finds, files and what is below folders, named by the path below the part without wildcards."""
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    # One that ends as in *.jpg finds no results of another ending, and those of the same would be inputs right now.
    if glob.has_magic(pattern.suffix or "*"):
        _check_apart(pattern, root, exclude)
    found = sorted(map(Path, glob.glob(str(pattern), recursive=True)), key=natural_order)
    # glob goes round in circles, 40 times, where a link leads back to a folder around it.
    matches = [match for match in found if not any(map(_leads_back, (match, *match.parents)))]
    if exclude is not None and root.resolve() in (excluded := exclude.resolve()).parents:
        matches = [match for match in matches if not (match.parent.resolve() / match.name).is_relative_to(excluded)]
    if not matches:
        raise UserError(f"{pattern}: no such file or folder")
    return [Input(each.path, each.path.relative_to(root)) for each in list_inputs(matches, exclude=exclude)]


def _leads_back(path: Path) -> bool:
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _check_apart(path: Path, folder: Path, exclude: Path | None) -> None:
    if exclude is not None and folder.resolve() == exclude.resolve():
        raise UserError(
            f"{path}: its results would lie among the inputs and be taken for such the next time: choose another "
            f"--output, such as {folder / 'restored'}"
        )


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
    """What a file says of how the picture was made, without how it is stored or has to be turned; None if damaged."""
    exif = Image.Exif()
    try:
        exif.load(image.getexif().tobytes())
        for tag in _STORAGE:
            exif.pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except Exception:  # as decoders do: struct.error, KeyError, TypeError, ...
        return None


def _orientation(image: Image.Image) -> int:
    """By the EXIF standard, 1 to 8, and 1 is upright. Other numbers mean nothing, nor does EXIF that is damaged."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as in _exif
        return 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, with the transparency that a PNG gives to one of its values."""
    values = np.clip(np.asarray(image, np.float32), 0, 65535)
    grey = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture in sRGB; without regard to a profile that is broken or of another kind of picture."""
    plain = image.convert("L") if image.mode in ("LA", "La", "1") else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted if converted is not None else image
