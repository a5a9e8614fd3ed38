"""Restores a list of image files with a policy. A stopped job can be resumed."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import read_picture
from xpsr_jax.images.writing import Format
from xpsr_jax.inference.compare import write_comparison
from xpsr_jax.inference.files import checked_size, write_failure, write_restored
from xpsr_jax.inference.image_keys import SEEDS
from xpsr_jax.inference.manifest import Manifest
from xpsr_jax.inference.restore import Restorer, not_finite
from xpsr_jax.serialisation import check_fields

Describe = Callable[[UInt8[np.ndarray, "h w 3"]], Caption]


@dataclass(frozen=True)
class Task:
    """One file to restore.

    Attributes:
        source: the image.
        output: the path of its result.
        caption: its captions. None: a `Describe` function writes them from its pixels when it is restored.
        name: the name that a page shows for it.
    """

    source: Path
    output: Path
    caption: Caption | None
    name: str


@dataclass(frozen=True)
class Policy:
    """How files are restored and written.

    Attributes:
        max_pixels: the most pixels of an image and of its result. Larger images are refused.
        seed: seed of the noise, 64 bits.
        format: format of the results.
        quality: quality of JPEG and WebP, 1 to 100.
        skip_errors: continue after an image that cannot be read, restored or written. Otherwise such an image ends the
            work, after the rest of its batch was written.
    """

    max_pixels: int
    seed: Annotated[int, SEEDS] = 0
    format: Format = "png"
    quality: int = 95
    skip_errors: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


class Progress(NamedTuple):
    """The progress of the work.

    Attributes:
        done: sampling steps of all images so far. The steps of skipped images count as done.
        total: sampling steps of all images.
        at: the first image of the current batch.
        before: the value of `done` when that batch began.
        work: the finished share of all work, from 0 to 1. A step of a large image counts more than one of a small
            image.
    """

    done: int
    total: int
    at: Task
    before: int
    work: float = 0.0


class Restored(NamedTuple):
    """An image was restored and its file written.

    Attributes:
        seconds: its share of the time that its batch took.
    """

    task: Task
    seconds: float


class Failed(NamedTuple):
    """An image could not be read, restored or written.

    Attributes:
        message: one line that names the image.
    """

    task: Task
    message: str


def restore_files(
    restorer: Restorer,
    tasks: Sequence[Task],
    policy: Policy,
    *,
    describe: Describe | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    when_complete: Callable[[Task, Caption, float, Path], None] = lambda task, caption, seconds, complete: None,
) -> Iterator[Restored | Failed]:
    """Restores files in batches of images of equal size, and yields the outcome of each as soon as it is known.

    All sizes are read before the first image is restored.

    Args:
        describe: writes the captions of tasks that have none.
        on_progress: called before each batch and during it. An exception that it raises ends the work.
        when_complete: called with a task, its captions, its seconds and its complete file, before the file gets its
            final name.

    Raises:
        UserError: an image failed, unless `policy.skip_errors`; or the disk is full or broken.
    """

    def failed(task: Task, message: str) -> Failed:
        if not policy.skip_errors:
            raise UserError(message)
        return Failed(task, message)

    sizes: list[tuple[int, int]] = []
    planned: list[Task] = []
    for task in tasks:
        try:
            sizes.append(checked_size(restorer, task.source, policy.max_pixels, policy.format))
            planned.append(task)
        except UserError as error:
            yield failed(task, str(error))
    done, total = 0, len(planned) * restorer.steps
    batches = restorer.plan(sizes)
    works = [len(indices) * restorer.cells(sizes[indices[0]]) for indices in batches]
    ends = list(itertools.accumulate(works))

    def progress(at: Task, before: int, number: int) -> Progress:
        of_batch = (done - before) / (len(batches[number]) * restorer.steps or 1)
        work = (ends[number] - works[number] * (1 - of_batch)) / ends[-1]
        return Progress(done, total, at, before, work)

    for number, indices in enumerate(batches):
        batch = [planned[i] for i in indices]
        before = done
        on_progress(progress(batch[0], before, number))
        pictures: dict[Task, Picture] = {}
        for task in batch:
            try:
                pictures[task] = read_picture(task.source, max_pixels=policy.max_pixels)
            except UserError as error:
                done += restorer.steps
                yield failed(task, str(error))
        if not pictures:
            continue

        def advance(
            steps: int, batch: Sequence[Task] = list(pictures), before: int = before, number: int = number
        ) -> None:
            nonlocal done
            done += len(batch) * steps
            on_progress(progress(batch[0], before, number))

        begin, at = time.perf_counter(), done
        images = [picture.rgb for picture in pictures.values()]
        try:
            captions = [_caption(task, picture, describe) for task, picture in pictures.items()]
            results = restorer(images, captions, seed=policy.seed, on_steps=advance)
        except (MemoryError, OverflowError, RecursionError) as error:
            if not policy.skip_errors:
                raise
            done = at + len(pictures) * restorer.steps
            for task in pictures:
                yield failed(task, f"{task.source}: cannot be restored: {str(error) or type(error).__name__}")
            continue
        seconds = (time.perf_counter() - begin) / len(pictures)
        wrong: dict[Task, str] = {}
        for (task, picture), caption, rgb in zip(pictures.items(), captions, results, strict=True):
            if rgb is None:
                wrong[task] = not_finite(str(task.source))
                continue
            try:
                write_restored(
                    task.output,
                    picture,
                    rgb,
                    upscale=restorer.sampling.upscale,
                    format=policy.format,
                    quality=policy.quality,
                    when_complete=functools.partial(when_complete, task, caption, seconds),
                )
            except UserError as error:
                wrong[task] = write_failure(task.source, error, policy.format)
            else:
                yield Restored(task, seconds)
        # Only after the rest of the batch was written, because `failed` may raise.
        for task, message in wrong.items():
            yield failed(task, message)


class FolderJob:
    """Restores files into one folder. Its restored.jsonl records which results are done.

    Attributes:
        done: tasks whose results exist already, made from the same input with the same settings.
        todo: the other tasks.
        failed: tasks that failed in `run`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        folder: Path,
        policy: Policy,
        settings: Mapping[str, Any],
        *,
        describe: Describe | None = None,
        overwrite: bool = False,
        changed: float = 0.0,
    ) -> None:
        """Finds the tasks that are done. This does not need the model.

        Args:
            settings: everything besides the policy and the captions that affects the results, as JSON values.
            describe: writes the captions of tasks that have none.
            overwrite: replace existing results that have another origin or other settings.
            changed: time of the model's last change. With `overwrite`, older results are replaced too.

        Raises UserError if an existing result was made from another input or with other settings, unless `overwrite`.
        """
        self._tasks, self._policy, self._describe = tasks, policy, describe
        self._manifest = Manifest(folder)
        self._settings = dict(settings) | {"seed": policy.seed, "format": policy.format}
        if policy.format in ("jpeg", "webp"):
            self._settings["quality"] = policy.quality
        self.failed: list[Task] = []
        self.done = self._made_of_these_inputs(overwrite)
        different = {task: found for task in self.done if (found := self._differences(task))}
        if overwrite:
            self.done = [t for t in self.done if t not in different and t.output.stat().st_mtime > changed]
        elif different:
            task, found = next(iter(different.items()))
            raise UserError(
                f"{task.output} exists already and was made with other settings ({'; '.join(found)}): choose another "
                "--output, or --overwrite"
            )
        self.todo = [task for task in tasks if task not in set(self.done)]

    def run(
        self, restorer: Restorer, *, on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> Iterator[Restored | Failed]:
        """Restores the tasks in `todo`: see `restore_files`. Each result gets a line in restored.jsonl."""

        def add(task: Task, caption: Caption, seconds: float, complete: Path) -> None:
            settings = self._settings_of(task, caption)
            self._manifest.add(task.output, complete, source=task.source, settings=settings, seconds=seconds)

        events = restore_files(
            restorer, self.todo, self._policy, describe=self._describe, on_progress=on_progress, when_complete=add
        )
        for event in events:
            if isinstance(event, Failed):
                self.failed.append(event.task)
            yield event

    def tidy(self) -> None:
        """Calls `Manifest.tidy`. Only for a job that is alone in its folder."""
        self._manifest.tidy()

    def compare(self, page: Path) -> int:
        """Writes a web page that shows each image before and after. Failed images are left out.

        Returns the number of images shown.
        """
        read = functools.partial(read_picture, max_pixels=self._policy.max_pixels)
        # A failed task may still have a result of an earlier run.
        shown = [task for task in self._tasks if task not in self.failed and task.output.exists()]
        write_comparison(page, ((task.name, read(task.source), read(task.output)) for task in shown))
        return len(shown)

    def _made_of_these_inputs(self, overwrite: bool) -> list[Task]:
        existing = [task for task in self._tasks if task.output.exists()]
        reasons = {task: self._manifest.why_foreign(task.output, task.source) for task in existing}
        foreign = [(task.output, reason) for task, reason in reasons.items() if reason]
        if foreign and not overwrite:
            output, reason = foreign[0]
            others = f" (and {len(foreign) - 1} more like it)" if len(foreign) > 1 else ""
            raise UserError(
                f"{output} exists already, and was not made from this input ({reason}){others}: choose another "
                "--output, or --overwrite"
            )
        return [task for task in existing if not reasons[task]]

    def _differences(self, task: Task) -> list[str]:
        before = self._manifest.settings(task.output)
        caption = task.caption
        if caption is None and before.get("captions") == "measured":
            # Describing the same picture again would give the same captions.
            caption = Caption(before.get("high", ""), before.get("low", ""))
        elif caption is None:
            picture = read_picture(task.source, max_pixels=self._policy.max_pixels)
            caption = _caption(task, picture, self._describe)
        # The author of a caption does not affect the result.
        now = self._settings_of(task, caption) | {"captions": before.get("captions")}
        return self._manifest.differences(task.output, now)

    def _settings_of(self, task: Task, caption: Caption) -> dict[str, Any]:
        by = {"captions": "measured"} if task.caption is None else {}
        return self._settings | dataclasses.asdict(caption) | by


def _caption(task: Task, picture: Picture, describe: Describe | None) -> Caption:
    if task.caption is not None:
        return task.caption
    if describe is None:
        raise ValueError("a task without captions needs a function that describes pictures")
    return describe(picture.rgb)
