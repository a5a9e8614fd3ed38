"""The page as a whole, and its server."""

import html
from pathlib import Path

import gradio as gr

from xpsr_jax.app.many import build_many
from xpsr_jax.app.one import build_one
from xpsr_jax.app.sessions import Sessions
from xpsr_jax.app.studio import Studio

_CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto; }
/* It has links that lead out. */
footer { display: none !important; }
/* On a phone the result is right below the button, and the settings are below the result. */
@media (max-width: 700px) {
  .halves { display: grid !important; grid-template-columns: minmax(0, 1fr); }
  .half { display: contents !important; }
  .last-on-phones { order: 1; }
}
"""


def build_page(studio: Studio, folder: Path, *, max_files: int, max_queue: int) -> gr.Blocks:
    """The page of a model.

    Args:
        folder: for what visitors upload and what becomes of it.
        max_files: that may be restored at one go.
        max_queue: how many may wait.
    """
    sessions = Sessions(folder)

    def leave(request: gr.Request) -> None:
        session = sessions[request.session_hash]
        session.one.set()
        session.many.set()

    with gr.Blocks(title="XPSR", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(f"# XPSR\nRestores a photograph, guided by two captions of it. {html.escape(studio.note)}")
        with gr.Tab("One photograph"):
            build_one(studio, sessions)
        with gr.Tab("Many"):
            build_many(studio, sessions, max_files=max_files)
        page.unload(leave)
    return page.queue(max_size=max_queue, api_open=False)


def launch(page: gr.Blocks, host: str, port: int, *, max_file_size: int) -> str:
    """Serves the page from a thread of its own; returns its address.

    Args:
        max_file_size: of an upload, in bytes.
    """
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_file_size,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
        # Whatever the environment may ask of gradio: no tunnel, no node, no MCP server, no log of runs.
        share=False,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        pwa=False,
        enable_monitoring=False,
    )
    return address
