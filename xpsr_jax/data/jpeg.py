"""JPEG artefacts (method §9)."""

import cv2
import numpy as np
from jaxtyping import Float


def jpeg(image: Float[np.ndarray, "h w 3"], quality: float) -> Float[np.ndarray, "h w 3"]:
    """The image after JPEG compression at `quality` (1 to 100, rounded), chroma at half resolution.

    The released code simulates JPEG with DiffJPEG; this is the real codec (OpenCV's libjpeg), which is what the photographs to be
    restored went through. They differ in that the codec takes 8-bit values and whole qualities, rounds its quantisation tables, has
    the luma table the right way round (DiffJPEG's is transposed) and interpolates chroma where DiffJPEG repeats it.

    Args:
      image: RGB float32; values outside [0, 1] are cut off.
    """
    pixels = to_uint8(image)[..., ::-1]
    ok, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    if not ok:
        raise ValueError(f"OpenCV could not encode an image of shape {image.shape} as JPEG.")
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB).astype(np.float32) / np.float32(255)


def to_uint8(image: Float[np.ndarray, "..."]) -> np.ndarray:
    """[0, 1] to 8 bits as an image file holds them: rounded half to even, saturated."""
    return np.clip(np.rint(image * np.float32(255)), 0, 255).astype(np.uint8)
