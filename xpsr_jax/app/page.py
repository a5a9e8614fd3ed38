"""The whole web page."""

import html
from typing import Any

import gradio as gr

from xpsr_jax.app.many import build_many
from xpsr_jax.app.one import build_one
from xpsr_jax.app.sessions import REFUSED, Sessions
from xpsr_jax.app.studio import Studio
from xpsr_jax.errors import UserError


class Page(gr.Blocks):
    """Gradio Blocks that show visitors their errors, and write no traceback of them into the log."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Converts the values that the browser sent to a function's inputs. Raises gr.Error if they are not valid."""
        try:
            inputs: list[Any] = await super().preprocess_data(*args, **kwargs)
            return inputs
        except gr.Error as error:  # A component's own message, for example about a number that is too large.
            raise gr.Error(html.escape(error.message), print_exception=False) from error
        except Exception as error:
            raise gr.Error(REFUSED, print_exception=False) from error

    async def call_function(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Calls a function of the page. Raises gr.Error for errors that a visitor can correct."""
        try:
            result: dict[str, Any] = await super().call_function(*args, **kwargs)
            return result
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error


def build_page(studio: Studio, sessions: Sessions, *, max_files: int, max_queue: int) -> Page:
    """Builds the page of a model.

    Args:
        studio: restores the files.
        sessions: the visitors' sessions.
        max_files: the most files that a visitor may restore at a time.
        max_queue: the most events that may wait in the queue.
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
