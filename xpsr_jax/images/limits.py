"""The limit of a picture's size. This module does not import the readers, so command lines start fast."""

import math
import sys

from xpsr_jax.errors import UserError

# Larger images are refused by default, because a file of a few bytes can claim any size.
MAX_PIXELS = 64_000_000


def limit_from_millions(option: str, millions: float) -> int:
    """The limit in pixels for an option such as --max-megapixels. inf: no limit. Raises UserError unless above 0."""
    if not millions > 0:  # also true for NaN
        raise UserError(f"{option} must be above 0, not {millions}")
    return sys.maxsize if math.isinf(millions * 1e6) else max(1, round(millions * 1e6))
