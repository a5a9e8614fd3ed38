"""The page's second tab: many photographs."""

import html
import itertools
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from xpsr_jax.app.fields import AT_ONCE, PROGRESS, WORK, buttons, read_settings, said, settings_fields
from xpsr_jax.app.sessions import Cancelled, Sessions
from xpsr_jax.app.studio import Studio
from xpsr_jax.data.by_path import ByPath
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.errors import UserError
from xpsr_jax.images.formats import endings


@dataclass(frozen=True)
class Many:
    """What happens when."""

    studio: Studio
    sessions: Sessions
    max_files: int

    def begin(self, request: gr.Request) -> tuple[gr.Button, gr.Button, None, gr.DownloadButton]:
        self.sessions[request.session_hash].many.clear()
        archive = gr.DownloadButton(value=None, interactive=False)
        return *buttons(at_work=True), None, archive

    def restore(
        self,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
        *fields: Any,
    ) -> Iterator[tuple]:
        """Yields, after each file, the table, the restored files, and at the end their archive."""
        session = self.sessions[request.session_hash]
        uploads, *values = fields
        uploads = [Path(upload) for upload in uploads or ()]
        sources = [upload for upload in uploads if upload.suffix.lower() != ".jsonl"]
        try:
            if not 0 < len(sources) <= self.max_files:
                raise UserError(f"{len(sources)} photographs: drop at least 1, at most {self.max_files}")
            settings = read_settings(self.studio.defaults, values)
            captions = captions_by_name(set(uploads) - set(sources))
        except UserError as error:
            raise gr.Error(html.escape(said(error, *uploads)), print_exception=False) from error

        rows: list[list[str]] = []
        outputs: list[str] = []
        folder = session.new_folder()
        for number, source in enumerate(sources):
            output = unused(folder / settings.name_of(source))
            caption = captions.get(source.name, Caption())
            place = f"{number + 1} of {len(sources)}: {source.name}"

            def on_steps(done: int, steps: int, number: int = number, place: str = place) -> None:
                if session.many.is_set():
                    raise Cancelled
                progress((number + done / steps) / len(sources), desc=place)

            begin = time.perf_counter()
            try:
                self.studio.restore_file(source, output, caption, settings, on_steps=on_steps)
            except UserError as error:
                rows.append([source.name, said(error, source)])
            except Cancelled:
                rows.append([source.name, "cancelled"])
                break
            else:
                rows.append([source.name, f"restored in {time.perf_counter() - begin:.1f} s"])
                outputs.append(str(output))
            yield rows, outputs, gr.skip()
        archive = (
            gr.DownloadButton(value=packed([Path(output) for output in outputs]), interactive=True)
            if outputs
            else gr.skip()
        )
        yield rows, outputs, archive

    def cancel(self, request: gr.Request) -> None:
        self.sessions[request.session_hash].many.set()


def captions_by_name(files: Iterable[Path]) -> ByPath[Caption]:
    """Captions by the images' names, without their folders, which an upload does not have. Raises UserError."""
    return ByPath({Path(image).name: caption for file in files for image, caption in read_captions(file).items()})


def unused(path: Path) -> Path:
    """The path, or one with a number if there is such a file: a.png and a.jpg may be restored together."""
    others = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in others if not other.exists())


def packed(files: Sequence[Path]) -> Path:
    """A zip of files of one folder, there. They are not compressed: pictures are already."""
    archive = files[0].with_name("restored.zip")
    with zipfile.ZipFile(archive, "w") as opened:
        for file in files:
            opened.write(file, file.name)
    return archive


def build_many(studio: Studio, sessions: Sessions, *, max_files: int) -> None:
    """Lays out the tab."""
    many = Many(studio, sessions, max_files)
    with gr.Row(elem_classes="halves"):
        with gr.Column(scale=2, min_width=300, elem_classes="half"):
            uploads = gr.File(
                label="Photographs, perhaps a captions.jsonl",
                file_count="multiple",
                file_types=[*endings(), ".jsonl"],
                height=280,
            )
            with gr.Row():
                start = gr.Button("Restore all", variant="primary", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", interactive=False, min_width=100)
            settings = settings_fields(studio.defaults)
        with gr.Column(scale=3, min_width=300, elem_classes="half"):
            table = gr.Dataframe(headers=["File", "Result"], label="What became of them", wrap=True, interactive=False)
            archive = gr.DownloadButton("Download all (zip)", interactive=False)
            restored = gr.File(label="Restored", file_count="multiple", interactive=False)

    begun = start.click(many.begin, None, [start, cancel, restored, archive], **AT_ONCE)
    outputs = [table, restored, archive]
    done = begun.then(many.restore, [uploads, *settings], outputs, show_progress_on=table, **WORK)
    for after in (done.then, done.failure):  # The former is not called after an error.
        after(lambda: buttons(at_work=False), None, [start, cancel], **AT_ONCE)
    cancel.click(many.cancel, **AT_ONCE)
