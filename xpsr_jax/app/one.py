"""The page's first tab: one photograph."""

import dataclasses
import html
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from xpsr_jax.app.fields import AT_ONCE, PRIVATE, PROGRESS, WORK, buttons, read_settings, said, settings_fields
from xpsr_jax.app.sessions import Cancelled, Result, Session, Sessions
from xpsr_jax.app.studio import Settings, Studio
from xpsr_jax.assets import DEMO
from xpsr_jax.caption.measured import describe_quality
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.errors import UserError
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import read_picture
from xpsr_jax.inference.compare import to_webp


@dataclass(frozen=True)
class One:
    """What happens when."""

    studio: Studio
    sessions: Sessions
    captions: dict[Path, Caption]

    def upload(self, file: dict[str, Any], request: gr.Request) -> tuple:
        session = self.sessions[request.session_hash]
        # The captions are of the photograph that was there before. Without one, somebody is just writing them.
        high = low = gr.skip() if session.photo is None else ""
        session.photo = None
        source = Path(file["path"])
        try:
            preview = write_preview(session, self.studio.read(source))
        except UserError as error:
            gr.Warning(html.escape(said(error, source)))
            return None, high, low
        session.photo = source
        return preview, high, low

    def clear(self, request: gr.Request) -> tuple[str, str]:
        self.sessions[request.session_hash].photo = None
        return "", ""

    def choose(self, index: int, request: gr.Request) -> tuple[Path, str, str]:
        session = self.sessions[request.session_hash]
        session.photo, caption = list(self.captions.items())[index]
        return session.photo, caption.high, caption.low

    def measure(self, request: gr.Request) -> str:
        source = self.sessions[request.session_hash].photo
        if source is None:
            raise gr.Error("Drop a photograph first.", print_exception=False)
        return describe_quality(self.studio.read(source).rgb)

    def begin(self, request: gr.Request) -> tuple[gr.Button, gr.Button]:
        session = self.sessions[request.session_hash]
        session.chosen = session.photo
        session.one.clear()
        return buttons(at_work=True)

    def restore(self, request: gr.Request, progress: gr.Progress = PROGRESS, *fields: Any) -> tuple:
        session = self.sessions[request.session_hash]
        source = session.chosen
        high, low, *values = fields
        if source is None:
            raise gr.Error("Drop a photograph first.", print_exception=False)

        def on_steps(done: int, steps: int) -> None:
            if session.one.is_set():
                raise Cancelled
            progress((done, steps), desc="Sampling" if done else "Preparing; the first picture of a size takes longer")

        try:
            settings = read_settings(self.studio.defaults, values)
            result = self._result(session, source, Caption(high.strip(), low.strip()), settings, on_steps)
        except UserError as error:
            raise gr.Error(html.escape(said(error, source)), print_exception=False) from error
        except Cancelled:
            gr.Info("Cancelled.")
            return gr.skip(), gr.skip(), gr.skip()
        session.results.append(result)
        pictures = [(each.after, each.file.name) for each in session.results]
        return *presented(result), gr.Gallery(pictures, visible=True)

    def _result(
        self,
        session: Session,
        source: Path,
        caption: Caption,
        settings: Settings,
        on_steps: Callable[[int, int], None],
    ) -> Result:
        begin = time.perf_counter()
        file = session.new_folder() / settings.name_of(source)
        self.studio.restore_file(source, file, caption, settings, on_steps=on_steps)
        seconds = time.perf_counter() - begin
        restored = read_picture(file)
        height, width = restored.rgb.shape[:2]
        after = write_preview(session, restored)
        before = write_preview(session, self.studio.read(source), like=after)
        return Result(file, before, after, note=f"{width} × {height}, {seconds:.0f} s")

    def cancel(self, request: gr.Request) -> None:
        self.sessions[request.session_hash].one.set()

    def show(self, event: gr.SelectData, request: gr.Request) -> tuple:
        return presented(self.sessions[request.session_hash].results[event.index])


def presented(result: Result) -> tuple[tuple[Path, Path], gr.DownloadButton]:
    """What the slider and the button show of it."""
    label = f"Download {result.file.name} ({result.note})"
    return (result.before, result.after), gr.DownloadButton(label, value=result.file, interactive=True)


def write_preview(session: Session, picture: Picture, *, like: Path | None = None) -> Path:
    """A file that a browser can show; of the size of another one, if one is given."""
    if like is not None:
        with Image.open(like) as other:
            picture = resized(picture, other.size)
    file = session.new_folder() / "preview.webp"
    file.write_bytes(to_webp(picture))
    return file


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture, bicubic, of (width, height)."""

    def resize(channels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(channels).resize(size, Image.Resampling.BICUBIC))

    alpha = None if picture.alpha is None else resize(picture.alpha)
    return dataclasses.replace(picture, rgb=resize(picture.rgb), alpha=alpha)


def build_one(studio: Studio, sessions: Sessions) -> None:
    """Lays out the tab."""
    captions = {DEMO / name: caption for name, caption in read_captions(DEMO / "captions.jsonl").items()}
    one = One(studio, sessions, captions)
    with gr.Row(elem_classes="halves"):
        with gr.Column(scale=2, min_width=300, elem_classes="half"):
            photo = gr.Image(
                label="Photograph", height=280, type="filepath", image_mode=None, sources=["upload", "clipboard"]
            )
            shelf = gr.Dataset(
                label="Or an example", components=[photo], samples=[[str(path)] for path in captions], type="index"
            )
            high = gr.Textbox(label="What is in it", placeholder="A grey cat sleeps on a red sofa.", lines=2)
            low = gr.Textbox(label="How it is degraded", placeholder="The image is blurry, with strong noise.", lines=2)
            measure = gr.Button("Measure how it is degraded", size="sm")
            with gr.Row():
                start = gr.Button("Restore", variant="primary", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", interactive=False, min_width=100)
            settings = settings_fields(studio.defaults)
        with gr.Column(scale=3, min_width=300, elem_classes="half"):
            slider = gr.ImageSlider(label="Before and after", buttons=["fullscreen"], max_height=640, interactive=False)
            download = gr.DownloadButton("Download", interactive=False)
            gallery = gr.Gallery(
                label="Restored so far",
                columns=4,
                fit_columns=False,
                height=200,
                allow_preview=False,
                buttons=[],
                interactive=False,
                visible=False,
            )

    # The photograph as it was uploaded, which gradio would otherwise open.
    photo.upload(one.upload, photo, [photo, high, low], preprocess=False, **PRIVATE)
    photo.clear(one.clear, None, [high, low], **AT_ONCE)
    shelf.click(one.choose, shelf, [photo, high, low], **PRIVATE)
    measure.click(one.measure, None, low, **PRIVATE)
    begun = start.click(one.begin, None, [start, cancel], **AT_ONCE)
    outputs = [slider, download, gallery]
    done = begun.then(one.restore, [high, low, *settings], outputs, show_progress_on=slider, **WORK)
    for after in (done.then, done.failure):  # The former is not called after an error.
        after(lambda: buttons(at_work=False), None, [start, cancel], **AT_ONCE)
    cancel.click(one.cancel, **AT_ONCE)
    gallery.select(one.show, None, [slider, download], **AT_ONCE)
