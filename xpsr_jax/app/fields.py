"""The fields for settings, and what they say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import gradio as gr

from xpsr_jax.app.studio import Settings
from xpsr_jax.config import SAMPLING_PRESETS, Sampling
from xpsr_jax.errors import UserError
from xpsr_jax.images.writing import SUFFIX_OF
from xpsr_jax.inference.settings import choose_sampling

_SAMPLERS = list(get_type_hints(Sampling)["sampler"].__args__)
# Of events: none is part of a public interface, and some do not wait in the queue.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
AT_ONCE: dict[str, Any] = PRIVATE | {"queue": False}
# Of events that restore: one at a time, of whichever tab and visitor.
WORK: dict[str, Any] = PRIVATE | {"concurrency_id": "model", "concurrency_limit": 1}
# Among a function's defaults, gradio takes it for the wish to show progress.
PROGRESS = gr.Progress()


def settings_fields(defaults: Sampling) -> list[gr.components.Component]:
    """The fields whose values `read_settings` takes, in its order.

    Args:
        defaults: the model's own settings.
    """

    def follow(preset: str) -> tuple[str, float, int, int]:
        chosen = choose_sampling(defaults, preset or None)
        return chosen.sampler, chosen.strength, chosen.steps, chosen.upscale

    presets = [("Default", ""), *((name.capitalize(), name) for name in SAMPLING_PRESETS)]
    with gr.Accordion("Settings", elem_classes="last-on-phones"):
        with gr.Row():
            preset = gr.Dropdown(presets, value="", label="Preset", min_width=130)
            sampler = gr.Dropdown(_SAMPLERS, value=defaults.sampler, label="Sampler", min_width=130)
        with gr.Row():
            steps = gr.Slider(1, 100, defaults.steps, step=1, label="Steps", min_width=160)
            strength = gr.Slider(0.01, 1, defaults.strength, step=0.01, label="Strength", min_width=160)
        with gr.Row():
            upscale = gr.Slider(1, 8, defaults.upscale, step=1, label="Upscale", min_width=160)
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=130)
            format = gr.Dropdown(list(SUFFIX_OF), value="png", label="File format", min_width=130)
    preset.input(follow, preset, [sampler, strength, steps, upscale], **AT_ONCE)
    return [preset, sampler, strength, steps, upscale, seed, format]


def read_settings(defaults: Sampling, values: Sequence[Any]) -> Settings:
    """What the fields say. Raises UserError if it does not go together."""
    preset, sampler, strength, steps, upscale, seed, format = values
    if None in (strength, steps, upscale, seed):
        raise UserError("strength, steps, upscale and seed must be numbers")
    if format is None:
        raise UserError("choose a file format")
    sampling = choose_sampling(
        defaults, preset or None, sampler=sampler, strength=float(strength), steps=int(steps), upscale=int(upscale)
    )
    return Settings(sampling, int(seed), format)


def buttons(*, at_work: bool) -> tuple[gr.Button, gr.Button]:
    """What becomes of the buttons that begin the work and cancel it."""
    return gr.Button(interactive=not at_work), gr.Button(interactive=at_work)


def said(error: UserError, *uploads: Path) -> str:
    """The error's text, where an uploaded file has the name that its owner knows."""
    text = str(error)
    for upload in uploads:
        text = text.replace(str(upload), upload.name)
    return text
