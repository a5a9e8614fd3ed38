"""Types that several settings share."""

from typing import Annotated, Literal

from xpsr_jax.serialisation import Range

# Counts and sizes of at least 1.
Count = Annotated[int, Range(1)]
Weight = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Fraction = Annotated[float, Range(0, 1)]

# Whether this process works together with others: "on", "off", or "auto": if a cluster is found (`distributed.start`).
ProcessMode = Literal["auto", "on", "off"]
