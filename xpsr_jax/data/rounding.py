"""From [0, 1] to 8 bits."""

import numpy as np
from jaxtyping import Float, UInt8


def round_to_uint8(image: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """[0, 1] to 8 bits, as for image files: rounded half to even, clipped to 0 and 255."""
    return np.clip(np.rint(image * np.float32(255)), 0, 255).astype(np.uint8)
