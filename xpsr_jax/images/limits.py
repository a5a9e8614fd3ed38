"""How large pictures may be. Nothing here imports what reads them, so that command lines need not wait for it."""

import math
import sys

from xpsr_jax.errors import UserError

# Larger images are refused unless asked for: a file of a few bytes may say that it is of any size.
MAX_PIXELS = 64_000_000


def limit_from_millions(option: str, millions: float) -> int:
    """The number that an option such as --max-megapixels stands for; inf: no limit. Raises UserError unless above 0."""
    if not millions > 0:  # NaN is not
        raise UserError(f"{option} must be above 0, not {millions}")
    return sys.maxsize if math.isinf(millions * 1e6) else max(1, round(millions * 1e6))
