"""95% intervals from a bootstrap."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def interval(rows: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int = 2000) -> tuple[float, float]:
    """Of a statistic of rows that have nothing to do with each other; each draw is of as many rows."""
    rng = np.random.default_rng(0)
    return middle(np.array([statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(resamples)]))


def interval_of_mean(values: Float[np.ndarray, "photos crops"], resamples: int = 10_000) -> tuple[float, float]:
    """Of the mean over crops, several of each photograph: each draw is of photographs, and then of crops of each.

    Crops of one photograph are alike. To draw from all crops as if they were not would give too narrow an interval.
    """
    rng = np.random.default_rng(0)
    photos, crops = values.shape
    drawn = rng.integers(photos, size=(resamples, photos, 1))
    return middle(values[drawn, rng.integers(crops, size=(resamples, photos, crops))].mean((1, 2)))


def middle(found: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
