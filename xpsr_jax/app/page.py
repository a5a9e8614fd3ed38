"""The page as a whole."""

import html
from typing import Any

import gradio as gr

from xpsr_jax.app.many import build_many
from xpsr_jax.app.one import build_one
from xpsr_jax.app.sessions import REFUSED, Sessions
from xpsr_jax.app.studio import Studio
from xpsr_jax.errors import UserError


class Page(gr.Blocks):
    """Blocks that tell a visitor what was wrong, and leave no traceback of it in the log."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> list[Any]:
        """What a function is given of what the browser sent. Raises gr.Error if that is not what the page sends."""
        try:
            inputs: list[Any] = await super().preprocess_data(*args, **kwargs)
            return inputs
        except gr.Error as error:  # A component's own words, about a number that is too large.
            raise gr.Error(html.escape(error.message), print_exception=False) from error
        except Exception as error:
            raise gr.Error(REFUSED, print_exception=False) from error

    async def call_function(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Calls a function of the page. Raises gr.Error for what a visitor can put right."""
        try:
            result: dict[str, Any] = await super().call_function(*args, **kwargs)
            return result
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error


def build_page(studio: Studio, sessions: Sessions, *, max_files: int, max_queue: int) -> Page:
    """The page of a model.

    Args:
        studio: restores.
        sessions: of the visitors.
        max_files: that may be restored at one go.
        max_queue: how many may wait.
    """

    def leave(request: gr.Request) -> None:
        name = request.session_hash
        if name is not None and name in sessions:
            sessions.of(name).leave()

    with Page(title="XPSR", analytics_enabled=False) as page:
        gr.Markdown(f"# XPSR\nRestores a photograph, guided by two captions of it. {html.escape(studio.note)}")
        with gr.Tab("One photograph"):
            build_one(studio, sessions)
        with gr.Tab("Many"):
            build_many(studio, sessions, max_files=max_files)
        page.unload(leave)
    queued: Page = page.queue(max_size=max_queue, api_open=False)
    return queued
