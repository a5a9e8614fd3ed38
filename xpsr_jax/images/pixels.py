"""Pixels of every kind to upright 8-bit RGB."""

import io

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageCms

from xpsr_jax.errors import UserError

# Pillow's modes of grey with 16 bits.
_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# Those whose colour profile is one of RGB values.
_RGB_MODES = ("RGB", "RGBA", "RGBX", "P", "PA")
# How to turn a picture upright, by the EXIF standard's numbers.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EIGHT_OF_SIXTEEN = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def to_8_bits(values: UInt16[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """16-bit values over 257, rounded: 65535 becomes 255."""
    rounded: np.ndarray = _EIGHT_OF_SIXTEEN[values]
    return rounded


def to_rgb(
    image: Image.Image, profile: bytes | None, orientation: int
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None, bytes | None]:
    """Any decoded picture's colours and transparency (None: opaque), upright, and the profile that still holds.

    Grey, palette and 16-bit pictures become 8-bit RGB. So do CMYK ones, and grey ones with a colour profile, by way of
    that profile, which then no longer holds.

    Args:
      orientation: by the EXIF standard.

    Raises UserError for floating-point pixels.
    """
    if image.mode == "F":
        raise UserError("floating-point pixels are not supported; save it with 8 or 16 bits")
    if image.mode in _DEEP_GREY:
        image = _grey_of_16_bits(image)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    alpha = None
    if image.has_transparency_data:
        alpha = np.array(image.convert("RGBA").getchannel("A"))
        alpha = None if alpha.min() == 255 else alpha
    if profile and image.mode not in _RGB_MODES:
        image, profile = _to_srgb(image, profile), None
    rgb = np.array((image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB"))
    return rgb, alpha, profile


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """In 8 bits, with the transparency that a PNG gives to one of its values."""
    values = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
    grey = Image.fromarray(to_8_bits(values))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture in sRGB; as it is where the profile is broken or of another kind of picture."""
    plain = image.convert("L") if image.mode in ("LA", "La", "1") else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted if converted is not None else image
