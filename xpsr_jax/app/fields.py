"""The fields for settings, and what they say."""

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
# Of events: none is part of a public interface, and some do not wait in the queue.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
AT_ONCE: dict[str, Any] = PRIVATE | {"queue": False}
# Of events that restore: one at a time, of whichever tab and visitor.
WORK: dict[str, Any] = PRIVATE | {"concurrency_id": "model", "concurrency_limit": 1}
# Among a function's defaults, gradio takes it for the wish to show progress.
PROGRESS = gr.Progress()


# The settings of `Sampling` that the page has, and the most that its sliders go to.
SHOWN = ("sampler", "strength", "steps", "upscale")
_MOST = {"steps": 100, "upscale": 8, "strength": 1}


def settings_fields(defaults: Sampling, *, least_steps: int = 1) -> list[gr.components.Component]:
    """The fields whose values `read_settings` takes, in its order.

    Args:
        defaults: the model's own settings.
        least_steps: 0 of a model with a first stage, whose picture that is.
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
    """What the fields say. Raises UserError if it does not go together."""
    preset, *shown, seed, format = values
    given = dict(zip(SHOWN, shown, strict=True))
    if None in (*shown, seed):
        raise UserError(f"{', '.join(SHOWN)} and the seed must have values")
    if format is None:
        raise UserError("choose a file format")
    # A browser has one kind of number.
    typed = {name: _HINTS[name](value) if _HINTS[name] in (int, float) else value for name, value in given.items()}
    return Settings(choose_sampling(defaults, preset or None, **typed), int(seed), format)


def _field(name: str, default: Any, least: int | None = None) -> gr.components.Component:
    """A field for one setting, by its type: one of some words, or a number."""
    label, hint = name.replace("_", " ").capitalize(), _HINTS[name]
    if get_origin(hint) is Literal:
        return gr.Dropdown(list(get_args(hint)), value=default, label=label, min_width=130)
    step = 1 if hint is int else 0.01
    return gr.Slider(step if least is None else least, _MOST[name], default, step=step, label=label, min_width=160)


def buttons(*, at_work: bool) -> tuple[gr.Button, gr.Button]:
    """What becomes of the buttons that begin the work and cancel it."""
    return gr.Button(interactive=not at_work), gr.Button(interactive=at_work)


def said(error: UserError, *uploads: Path) -> str:
    """The error's text, where an uploaded file has the name that its owner knows."""
    text = str(error)
    for upload in uploads:
        text = text.replace(str(upload), upload.name)
    return text
