"""JPEG artefacts, the same as in the released code (method §9)."""

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

# The standard's luma table, transposed. This is a mistake in the released code's DiffJPEG. It is kept because the
# released weights were trained with it.
LUMA_TABLE = np.array(
    [
        [16, 12, 14, 14, 18, 24, 49, 72],
        [11, 12, 13, 17, 22, 35, 64, 92],
        [10, 14, 16, 22, 37, 55, 78, 95],
        [16, 19, 24, 29, 56, 64, 87, 98],
        [24, 26, 40, 51, 68, 81, 103, 112],
        [40, 58, 57, 87, 109, 104, 121, 100],
        [51, 60, 69, 80, 103, 113, 120, 103],
        [61, 55, 56, 62, 77, 92, 101, 99],
    ]
)
CHROMA_TABLE = np.full((8, 8), 99)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


def _cosines() -> Float[np.ndarray, "64 64"]:
    """The orthonormal 8 x 8 cosine transform of a flattened block."""
    k = np.arange(8)
    rows = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) / 2
    rows[0] /= np.sqrt(2)
    return np.kron(rows, rows)


_COSINES = _cosines()


def quantisation_scale(quality: float) -> float:
    """The factor of the standard's quantisation tables: 1 at quality 50, less at higher quality."""
    return (5000 / quality if quality < 50 else 200 - 2 * quality) / 100


def jpeg(image: Float[np.ndarray, "h w 3"], quality: float) -> Float[np.ndarray, "h w 3"]:
    """The image after JPEG compression with chroma at half resolution; RGB float32 in [0, 1].

    Equal to DiffJPEG of the released code, which is simpler than a real codec. Only the coefficients are rounded, not
    the pixels or the tables. Chroma is repeated instead of interpolated. The image is padded with black to a multiple
    of 16.

    Args:
      image: RGB float32; values outside [0, 1] are clipped.
      quality: at least 1 and below 100, not rounded.
    """
    height, width = image.shape[:2]
    image = cv2.copyMakeBorder(np.clip(image, 0, 1), 0, -height % 16, 0, -width % 16, cv2.BORDER_CONSTANT)
    ycc = cv2.transform(image, _affine(_TO_YCC * 255, [0, 128, 128]))
    luma, *chroma = np.ascontiguousarray(ycc.transpose(2, 0, 1))
    scale = quantisation_scale(quality)
    size = luma.shape[::-1]
    planes = [_quantise(luma, LUMA_TABLE * scale)]
    for plane in chroma:
        half = cv2.resize(plane, (size[0] // 2, size[1] // 2), interpolation=cv2.INTER_AREA)
        planes.append(cv2.resize(_quantise(half, CHROMA_TABLE * scale), size, interpolation=cv2.INTER_NEAREST))
    rgb = cv2.transform(cv2.merge(planes), _affine(_TO_RGB / 255, _TO_RGB @ [0, -128, -128] / 255))
    return np.clip(rgb[:height, :width], 0, 1)


def _affine(matrix: Float[np.ndarray, "3 3"], offset: ArrayLike) -> Float[np.ndarray, "3 4"]:
    return np.column_stack([matrix, offset]).astype(np.float32)


def _quantise(plane: Float[np.ndarray, "h w"], table: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Rounds the cosine coefficients of 8 x 8 blocks to multiples of `table`."""
    height, width = plane.shape
    blocks = plane.reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3).reshape(-1, 64)
    coefficients = np.rint((blocks - np.float32(128)) @ (_COSINES.T / table.ravel()).astype(np.float32))
    blocks = coefficients @ (_COSINES * table.reshape(-1, 1)).astype(np.float32) + np.float32(128)
    rounded: np.ndarray = blocks.reshape(height // 8, width // 8, 8, 8).transpose(0, 2, 1, 3).reshape(height, width)
    return rounded
