"""The page's first tab: one photograph."""

import dataclasses
import html
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from xpsr_jax.app.fields import AT_ONCE, PRIVATE, PROGRESS, WORK, buttons, read_settings, settings_fields, visitor_text
from xpsr_jax.app.sessions import Cancelled, Refused, Result, Session, Sessions
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
    """The tab's events.

    Attributes:
        studio: restores the files.
        sessions: the visitors' sessions.
        captions: the example photographs and their captions.
    """

    studio: Studio
    sessions: Sessions
    captions: dict[Path, Caption]

    def upload(self, file: dict[str, Any], request: gr.Request) -> tuple:
        """Takes the upload, and shows a preview of it."""
        session = self.sessions.of(request.session_hash)
        # Existing captions belong to the previous photograph. If there was none, the visitor is writing them now.
        high = low = gr.skip() if session.photo is None else ""
        self._take_away(session)
        source = None
        try:
            source = self.sessions.take(session, file["path"])
            preview = write_preview(source.parent, self.studio.read(source))
        except UserError as error:
            session.remove(source)
            gr.Warning(html.escape(visitor_text(error, *([source] if source else []))))
            return None, high, low
        session.photo = source
        return preview, high, low

    def clear(self, request: gr.Request) -> tuple[str, str]:
        """Forgets the photograph and its captions."""
        self._take_away(self.sessions.of(request.session_hash))
        return "", ""

    def choose(self, index: Any, request: gr.Request) -> tuple:
        """Selects an example by its number."""
        session = self.sessions.of(request.session_hash)
        if type(index) is not int or not 0 <= index < len(self.captions):
            raise Refused
        self._take_away(session)
        session.photo, caption = list(self.captions.items())[index]
        return session.photo, caption.high, caption.low

    def _take_away(self, session: Session) -> None:
        photo, session.photo = session.photo, None
        session.remove(photo)

    def measure(self, request: gr.Request) -> str:
        """Describes how the photograph is degraded."""
        source = self.sessions.of(request.session_hash).photo
        if source is None:
            raise UserError("Drop a photograph first.")
        try:
            return describe_quality(self.studio.read(source).rgb)
        except UserError as error:
            raise UserError(visitor_text(error, source)) from error

    def begin(self, request: gr.Request) -> tuple[gr.Button, gr.Button]:
        """Remembers the photograph to restore before the event waits in the queue."""
        session = self.sessions.of(request.session_hash)
        session.chosen = session.photo
        session.one.clear()
        return buttons(at_work=True)

    def restore(self, request: gr.Request, progress: gr.Progress = PROGRESS, *fields: Any) -> tuple:
        """Restores the photograph. Returns the new contents of the slider, the button and the gallery."""
        session = self.sessions.of(request.session_hash)
        source = session.chosen
        high, low, *values = fields
        if source is None:
            raise UserError("Drop a photograph first.")

        def on_steps(done: int, steps: int) -> None:
            if session.one.is_set():
                raise Cancelled
            preparing = "Preparing; the first picture of each size takes longer"
            progress((done, steps), desc="Sampling" if done else preparing)

        try:
            with session.working():
                settings = read_settings(self.studio.defaults, values)
                caption = Caption((high or "").strip(), (low or "").strip())
                result = self._result(session, source, caption, settings, on_steps)
        except UserError as error:
            raise UserError(visitor_text(error, source)) from error
        except Cancelled:
            gr.Info("Cancelled.")
            return gr.skip(), gr.skip(), gr.skip()
        finally:
            session.chosen = None
            session.remove(source)
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
        self.sessions.check_room()
        begin = time.perf_counter()
        file = session.new_folder() / settings.name_of(source)
        self.studio.restore_file(source, file, caption, settings, on_steps=on_steps)
        seconds = time.perf_counter() - begin
        restored = read_picture(file)
        height, width = restored.rgb.shape[:2]
        after = write_preview(session.new_folder(), restored)
        before = write_preview(session.new_folder(), self.studio.read(source), like=after)
        return Result(file, before, after, note=f"{width} × {height}, {seconds:.0f} s")

    def cancel(self, request: gr.Request) -> None:
        """Ends the work at its next step."""
        self.sessions.of(request.session_hash).one.set()

    def show(self, event: gr.SelectData, request: gr.Request) -> tuple:
        """Shows an earlier result, by its number."""
        results = self.sessions.of(request.session_hash).results
        if type(event.index) is not int or not 0 <= event.index < len(results):
            raise Refused
        return presented(results[event.index])


def presented(result: Result) -> tuple[tuple[Path, Path], gr.DownloadButton]:
    """The contents of the slider and the button for a result."""
    label = f"Download {result.file.name} ({result.note})"
    return (result.before, result.after), gr.DownloadButton(label, value=result.file, interactive=True)


def write_preview(folder: Path, picture: Picture, *, like: Path | None = None) -> Path:
    """Writes a preview file for the browser and returns its path. If `like` is given, the preview gets its size."""
    if like is not None:
        with Image.open(like) as other:
            picture = resized(picture, other.size)
    file = folder / "preview" / "preview.webp"
    file.parent.mkdir()
    file.write_bytes(to_webp(picture))
    return file


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resizes a picture (bicubic) to (width, height)."""

    def resize(channels: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(channels).resize(size, Image.Resampling.BICUBIC))

    alpha = None if picture.alpha is None else resize(picture.alpha)
    return dataclasses.replace(picture, rgb=resize(picture.rgb), alpha=alpha)


def build_one(studio: Studio, sessions: Sessions) -> None:
    """Builds the tab."""
    # The examples are copied to the visitors' files, because Gradio shows no other files.
    examples = Path(shutil.copytree(DEMO, sessions.folder / "examples"))
    captions = {examples / name: caption for name, caption in read_captions(examples / "captions.jsonl").items()}
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
            settings = settings_fields(studio.defaults, least_steps=studio.least_steps)
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

    # `preprocess=False` passes the upload unopened. Otherwise Gradio would open it.
    photo.upload(one.upload, photo, [photo, high, low], preprocess=False, **PRIVATE)
    photo.clear(one.clear, None, [high, low], **AT_ONCE)
    shelf.click(one.choose, shelf, [photo, high, low], **AT_ONCE)
    measure.click(one.measure, None, low, **PRIVATE)
    begun = start.click(one.begin, None, [start, cancel], **AT_ONCE)
    outputs = [slider, download, gallery]
    done = begun.then(one.restore, [high, low, *settings], outputs, show_progress_on=slider, **WORK)
    for after in (done.then, done.failure):  # `then` is not called after an error.
        after(lambda: buttons(at_work=False), None, [start, cancel], **AT_ONCE)
    cancel.click(one.cancel, **AT_ONCE)
    gallery.select(one.show, None, [slider, download], **AT_ONCE)
