"""The page's second tab: many photographs."""

import html
import itertools
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from xpsr_jax.app.fields import AT_ONCE, PRIVATE, PROGRESS, WORK, buttons, read_settings, settings_fields, visitor_text
from xpsr_jax.app.sessions import Cancelled, Session, Sessions
from xpsr_jax.app.studio import Studio
from xpsr_jax.data.by_path import ByPath
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.errors import UserError
from xpsr_jax.images.formats import endings
from xpsr_jax.inference.job import Failed, Progress, Task

# The table's text for a photograph that is not restored yet.
WAITS = "waits"


@dataclass(frozen=True)
class Many:
    """The tab's events.

    Attributes:
        studio: restores the files.
        sessions: the visitors' sessions.
        max_files: the most files that a visitor may upload here.
    """

    studio: Studio
    sessions: Sessions
    max_files: int

    def upload(self, files: list[dict[str, Any]], request: gr.Request) -> tuple[None, list[list[str]]]:
        """Takes uploads, and shows all uploads of the session in the table."""
        session = self.sessions.of(request.session_hash)
        try:
            for file in files:
                upload = self.sessions.take(session, file["path"])
                session.photos.append(upload)
                if sum(is_captions(photo) == is_captions(upload) for photo in session.photos) > self.max_files:
                    session.photos.remove(upload)
                    session.remove(upload)
                    raise UserError(f"At most {self.max_files} photographs at a time: {upload.name} was left out.")
        except UserError as error:
            gr.Warning(html.escape(str(error)))
        return None, waiting(session.photos)

    def clear(self, request: gr.Request) -> list[list[str]]:
        """Forgets all uploads."""
        session = self.sessions.of(request.session_hash)
        if session.at_work:
            raise UserError("The photographs are being restored: cancel that first.")
        photos, session.photos = session.photos, []
        for photo in photos:
            session.remove(photo)
        return []

    def begin(self, request: gr.Request) -> tuple[gr.Button, gr.Button, None, gr.DownloadButton]:
        """Clears the cancellation of earlier work, and sets the buttons."""
        self.sessions.of(request.session_hash).many.clear()
        archive = gr.DownloadButton(value=None, interactive=False)
        return *buttons(at_work=True), None, archive

    def restore(self, request: gr.Request, progress: gr.Progress = PROGRESS, *values: Any) -> Iterator[tuple]:
        """Yields the table and the restored files after each file, and at the end also their archive."""
        session = self.sessions.of(request.session_hash)
        with session.working():
            yield from self._restore(session, progress, values)

    def _restore(self, session: Session, progress: gr.Progress, values: Sequence[Any]) -> Iterator[tuple]:
        uploads = list(session.photos)
        sources = [upload for upload in uploads if not is_captions(upload)]
        try:
            if not sources:
                raise UserError(f"0 photographs: drop at least 1, at most {self.max_files}")
            settings = read_settings(self.studio.defaults, values)
            captions = captions_by_name(set(uploads) - set(sources))
        except UserError as error:
            raise UserError(visitor_text(error, *uploads)) from error

        folder, taken = session.new_folder(), set[Path]()
        tasks = [
            Task(
                source=source,
                output=free_path(folder / settings.name_of(source), taken),
                caption=captions.get(source.name, Caption()),
                name=source.name,
            )
            for source in sources
        ]
        results = dict.fromkeys(tasks, WAITS)
        outputs: list[str] = []

        def on_progress(now: Progress) -> None:
            if session.many.is_set():
                raise Cancelled
            if now.done == now.before:
                self.sessions.check_room()
            progress((now.done, now.total), desc=f"{tasks.index(now.at) + 1} of {len(tasks)}: {now.at.name}")

        def set_waiting(text: str) -> None:
            results.update({task: text for task, result in results.items() if result == WAITS})

        try:
            for event in self.studio.restore_files(tasks, settings, on_progress=on_progress):
                if isinstance(event, Failed):
                    results[event.task] = visitor_text(UserError(event.message), event.task.source)
                else:
                    results[event.task] = f"restored in {event.seconds:.1f} s"
                    outputs.append(str(event.task.output))
                yield table(results), outputs, gr.skip()
        except UserError as error:
            set_waiting(visitor_text(error, *uploads))
        except Cancelled:
            set_waiting("cancelled")
        archive = (
            gr.DownloadButton(value=zip_files([Path(output) for output in outputs]), interactive=True)
            if outputs
            else gr.skip()
        )
        yield table(results), outputs, archive

    def cancel(self, request: gr.Request) -> None:
        """Ends the work at its next step."""
        self.sessions.of(request.session_hash).many.set()


def is_captions(upload: Path) -> bool:
    """Whether an upload is a captions file, by its name."""
    return upload.suffix.lower() == ".jsonl"


def waiting(photos: Iterable[Path]) -> list[list[str]]:
    """The table's rows of uploads that have not been restored yet."""
    return [[photo.name, "captions" if is_captions(photo) else WAITS] for photo in photos]


def captions_by_name(files: Iterable[Path]) -> ByPath[Caption]:
    """Captions by image name, without folders, because uploads have no folders. Raises UserError."""
    return ByPath({Path(image).name: caption for file in files for image, caption in read_captions(file).items()})


def table(results: Mapping[Task, str]) -> list[list[str]]:
    """The table's rows while photographs are restored."""
    return [[task.name, result] for task, result in results.items()]


def free_path(path: Path, taken: set[Path]) -> Path:
    """Returns the path, or the path with a number if it is in `taken`, and adds it to `taken`.

    Example: a.png and a.jpg may be restored together.
    """
    others = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    free = next(each for each in itertools.chain([path], others) if each not in taken)
    taken.add(free)
    return free


def zip_files(files: Sequence[Path]) -> Path:
    """Writes files of one folder into a zip in that folder. Nothing is compressed, because pictures already are."""
    archive = files[0].with_name("restored.zip")
    with zipfile.ZipFile(archive, "w") as opened:
        for file in files:
            opened.write(file, file.name)
    return archive


def build_many(studio: Studio, sessions: Sessions, *, max_files: int) -> None:
    """Builds the tab."""
    many = Many(studio, sessions, max_files)
    with gr.Row(elem_classes="halves"):
        with gr.Column(scale=2, min_width=300, elem_classes="half"):
            uploads = gr.File(
                label="Photographs, and optionally a captions.jsonl",
                file_count="multiple",
                file_types=[*endings(), ".jsonl"],
                height=280,
            )
            with gr.Row():
                start = gr.Button("Restore all", variant="primary", min_width=100)
                cancel = gr.Button("Cancel", variant="stop", interactive=False, min_width=100)
                clear = gr.Button("Remove all", min_width=100)
            settings = settings_fields(studio.defaults, least_steps=studio.least_steps)
        with gr.Column(scale=3, min_width=300, elem_classes="half"):
            table = gr.Dataframe(headers=["File", "Result"], label="The photographs", wrap=True, interactive=False)
            archive = gr.DownloadButton("Download all (zip)", interactive=False)
            restored = gr.File(label="Restored", file_count="multiple", interactive=False)

    # `preprocess=False` passes the uploads unread. Otherwise Gradio would read them.
    uploads.upload(many.upload, uploads, [uploads, table], preprocess=False, **PRIVATE)
    clear.click(many.clear, None, table, **PRIVATE)
    begun = start.click(many.begin, None, [start, cancel, restored, archive], **AT_ONCE)
    outputs = [table, restored, archive]
    done = begun.then(many.restore, settings, outputs, show_progress_on=table, **WORK)
    for after in (done.then, done.failure):  # `then` is not called after an error.
        after(lambda: buttons(at_work=False), None, [start, cancel], **AT_ONCE)
    cancel.click(many.cancel, **AT_ONCE)
