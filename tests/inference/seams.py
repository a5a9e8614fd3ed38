"""Measures whether the seams between tiles are visible."""

import numpy as np


def seam(image: np.ndarray, whole: np.ndarray, *, axis: int, meeting: int, fade: int) -> tuple[float, float]:
    """Gradient magnitude on the line where two tiles meet, and within `fade` pixels of it, relative to other places.

    Both are also relative to the picture that was restored as a whole, because it has edges of its own there.
    """
    ours, theirs = (
        np.abs(np.diff(picture.astype(np.float64) @ (0.299, 0.587, 0.114), axis=axis)).mean(1 - axis)
        for picture in (image, whole)
    )
    near = np.zeros(len(ours), bool)
    near[meeting - fade : meeting + fade] = True
    elsewhere = ours[~near].sum() / theirs[~near].sum()
    return ours[meeting - 1] / theirs[meeting - 1] / elsewhere, ours[near].sum() / theirs[near].sum() / elsewhere
