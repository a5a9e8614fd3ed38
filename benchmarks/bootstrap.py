"""95% intervals from a bootstrap."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def interval(
    rows: np.ndarray, photos: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int = 2000
) -> tuple[float, float]:
    """The interval of a statistic of rows. Each draw first draws photographs, and then rows of each photograph."""
    rng = np.random.default_rng(0)
    of_photo = [np.flatnonzero(photos == photo) for photo in np.unique(photos)]

    def draw() -> np.ndarray:
        drawn = (of_photo[i] for i in rng.integers(len(of_photo), size=len(of_photo)))
        again: np.ndarray = rows[np.concatenate([each[rng.integers(len(each), size=len(each))] for each in drawn])]
        return again

    return middle(np.array([statistic(draw()) for _ in range(resamples)]))


def interval_of_mean(
    values: Float[np.ndarray, "trainings photos crops"], resamples: int = 10_000
) -> tuple[float, float]:
    """The interval of the mean. Each draw draws trainings, photographs for all trainings, and crops of each photograph.

    Crops of the same photograph are similar, and so are results of the same training. If all numbers were drawn
    independently, the interval would be too narrow. With 8 photographs it is still a little too narrow. In simulations,
    95% intervals contained the true value in 87% of cases if photographs differ most, in 91% if crops differ equally,
    and in 98% if crops differ most.
    """
    rng = np.random.default_rng(0)
    trainings, photos, crops = values.shape
    training = rng.integers(trainings, size=(resamples, trainings, 1, 1))
    photo = rng.integers(photos, size=(resamples, 1, photos, 1))
    crop = rng.integers(crops, size=(resamples, 1, photos, crops))
    return middle(values[training, photo, crop].mean((1, 2, 3)))


def middle(found: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)
