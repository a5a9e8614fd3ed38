"""The page's fields for settings, and reading their values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gradio as gr

from xpsr_jax.app.studio import Settings
from xpsr_jax.config import SAMPLING_PRESETS, Sampling
from xpsr_jax.errors import UserError
from xpsr_jax.images.writing import SUFFIX_OF
from xpsr_jax.inference.settings import choose_sampling

_HINTS = get_type_hints(Sampling)
# Options of events. No event is part of a public API, and some do not wait in the queue.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
AT_ONCE: dict[str, Any] = PRIVATE | {"queue": False}
# Options of events that restore: one runs at a time, over all tabs and visitors.
WORK: dict[str, Any] = PRIVATE | {"concurrency_id": "model", "concurrency_limit": 1}
# If a function has this as a default, Gradio shows its progress.
PROGRESS = gr.Progress()


# The settings of `Sampling` that the page shows, and the maximum of its sliders.
SHOWN = ("sampler", "strength", "steps", "upscale")
_MOST = {"steps": 100, "upscale": 8, "strength": 1}


def settings_fields(defaults: Sampling, *, least_steps: int = 1) -> list[gr.components.Component]:
    """Makes the fields whose values `read_settings` takes, in its order.

    Args:
        defaults: the model's own settings.
        least_steps: the minimum of `steps`. 0 for a model with a first stage: then 0 steps return that stage's result.
    """
    least = {"steps": least_steps}

    def follow(preset: str) -> tuple[Any, ...]:
        chosen = choose_sampling(defaults, preset or None)
        return tuple(getattr(chosen, name) for name in SHOWN)

    presets = [("Default", ""), *((name.replace("_", " ").capitalize(), name) for name in SAMPLING_PRESETS)]
    with gr.Accordion("Settings", elem_classes="last-on-phones"):
        with gr.Row():
            preset = gr.Dropdown(presets, value="", label="Preset", min_width=130)
            shown = [_field(name, getattr(defaults, name), least.get(name)) for name in SHOWN]
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=130)
            format = gr.Dropdown(list(SUFFIX_OF), value="png", label="File format", min_width=130)
    preset.input(follow, preset, shown, **AT_ONCE)
    return [preset, *shown, seed, format]


def read_settings(defaults: Sampling, values: Sequence[Any]) -> Settings:
    """Reads the values of the fields. Raises UserError if values are missing or contradict each other."""
    preset, *shown, seed, format = values
    given = dict(zip(SHOWN, shown, strict=True))
    if None in (*shown, seed):
        raise UserError(f"{', '.join(SHOWN)} and the seed must have values")
    if format is None:
        raise UserError("choose a file format")
    # A browser has only one type of number.
    typed = {name: _HINTS[name](value) if _HINTS[name] in (int, float) else value for name, value in given.items()}
    return Settings(choose_sampling(defaults, preset or None, **typed), int(seed), format)


def _field(name: str, default: Any, least: int | None = None) -> gr.components.Component:
    """Makes the field for one setting by its type: a list for a choice of words, a slider for a number."""
    label, hint = name.replace("_", " ").capitalize(), _HINTS[name]
    if get_origin(hint) is Literal:
        return gr.Dropdown(list(get_args(hint)), value=default, label=label, min_width=130)
    step = 1 if hint is int else 0.01
    return gr.Slider(step if least is None else least, _MOST[name], default, step=step, label=label, min_width=160)


def buttons(*, at_work: bool) -> tuple[gr.Button, gr.Button]:
    """The states of the buttons that start and cancel the work."""
    return gr.Button(interactive=not at_work), gr.Button(interactive=at_work)


def visitor_text(error: UserError, *uploads: Path) -> str:
    """The error's text, with the uploaded files' own names in place of their paths on the server."""
    text = str(error)
    for upload in uploads:
        text = text.replace(str(upload), upload.name)
    return text
