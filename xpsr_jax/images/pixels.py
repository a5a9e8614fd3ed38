"""Converts pixels of all kinds to upright 8-bit RGB."""

import io

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageCms

from xpsr_jax.errors import UserError

# Pillow's modes for 16-bit grey.
_DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# Pillow's modes in which a colour profile applies to RGB values.
_RGB_MODES = ("RGB", "RGBA", "RGBX", "P", "PA")
# The operation that makes a picture upright, by its orientation in the EXIF standard.
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
    """Divides 16-bit values by 257 and rounds. 65535 becomes 255."""
    rounded: np.ndarray = _EIGHT_OF_SIXTEEN[values]
    return rounded


def to_rgb(
    image: Image.Image, profile: bytes | None, orientation: int
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None, bytes | None]:
    """Converts any decoded picture to upright 8-bit RGB.

    Grey, palette and 16-bit pictures become 8-bit RGB. CMYK pictures, and grey pictures with a colour profile, are
    converted to sRGB with their profile.

    Args:
      image: the decoded picture.
      profile: its colour profile.
      orientation: its orientation by the EXIF standard.

    Returns: the colours, the opacity (None: opaque), and the colour profile of the result (None: sRGB).

    Raises UserError for floating-point pixels.
    """
    if image.mode == "F":
        raise UserError("floating-point pixels are not supported; save it with 8 or 16 bits per channel")
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
    """Converts 16-bit grey to 8 bits. A value that a PNG marks as transparent becomes transparent."""
    values = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
    grey = Image.fromarray(to_8_bits(values))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Converts the picture to sRGB. It is unchanged if the profile is broken or is for another kind of picture."""
    plain = image.convert("L") if image.mode in ("LA", "La", "1") else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted if converted is not None else image
