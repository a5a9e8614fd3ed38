"""Whether one sees where tiles meet."""

import numpy as np


def seam(image: np.ndarray, whole: np.ndarray, *, axis: int, meeting: int, fade: int) -> tuple[float, float]:
    """Gradient magnitude across the line where two tiles meet, and within `fade` pixels of it, over that elsewhere.

    Each is taken relative to the picture that was restored as a whole, which has its own edges there.
    """
    ours, theirs = (
        np.abs(np.diff(picture.astype(np.float64) @ (0.299, 0.587, 0.114), axis=axis)).mean(1 - axis)
        for picture in (image, whole)
    )
    near = np.zeros(len(ours), bool)
    near[meeting - fade : meeting + fade] = True
    elsewhere = ours[~near].sum() / theirs[~near].sum()
    return ours[meeting - 1] / theirs[meeting - 1] / elsewhere, ours[near].sum() / theirs[near].sum() / elsewhere
