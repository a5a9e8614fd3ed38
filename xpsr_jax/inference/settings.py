"""Chooses the sampling settings if only some of them are given."""

import dataclasses
from typing import Any

from xpsr_jax.config import SAMPLING_PRESETS, Sampling


def choose_sampling(defaults: Sampling, preset: str | None, **given: Any) -> Sampling:
    """Returns the settings of the preset, or of the model if there is no preset, overridden by the given settings.

    `process_size` is always the model's own, because it belongs to the crops that the model was trained on.

    Args:
        defaults: the model's own settings.
        preset: a name in `SAMPLING_PRESETS`. None: no preset.
        given: fields of `Sampling`. None: not given.

    Raises:
        UserError: the settings contradict each other.
    """
    chosen = SAMPLING_PRESETS[preset] if preset else defaults
    chosen = dataclasses.replace(chosen, process_size=defaults.process_size)
    given = {field: value for field, value in given.items() if value is not None}
    if given.get("sampler", chosen.sampler) != chosen.sampler:
        # Settings that were chosen for another sampler do not apply to this one.
        chosen = dataclasses.replace(chosen, sampler=given["sampler"], eta=0.0, karras=False)
    return dataclasses.replace(chosen, **given)
