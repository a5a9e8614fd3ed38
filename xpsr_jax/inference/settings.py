"""Which settings hold when a person names only some of them."""

import dataclasses
from typing import Any

from xpsr_jax.config import SAMPLING_PRESETS, Sampling


def choose_sampling(defaults: Sampling, preset: str | None, **given: Any) -> Sampling:
    """The preset, or else the model's own settings, with what is given otherwise.

    The size of the networks' images is the model's under any preset: it goes with the crops that it was trained on.

    Args:
        defaults: the model's own.
        preset: a name of `SAMPLING_PRESETS`; None: none.
        given: fields of `Sampling`; None counts as not given.

    Raises:
        UserError: the settings do not go together.
    """
    chosen = SAMPLING_PRESETS[preset] if preset else defaults
    chosen = dataclasses.replace(chosen, process_size=defaults.process_size)
    given = {field: value for field, value in given.items() if value is not None}
    if given.get("sampler", chosen.sampler) != chosen.sampler:
        # What was chosen for another sampler is not meant for this one.
        chosen = dataclasses.replace(chosen, sampler=given["sampler"], eta=0.0, karras=False)
    return dataclasses.replace(chosen, **given)
