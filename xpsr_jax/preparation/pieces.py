"""Runs long work in pieces, in several processes. Stopped work is kept and resumed by the next start.

The result is written to `.NAME.partial` beside the output, and a record of finished pieces to `.NAME.progress`. When
all pieces are finished, the result is renamed to the output. In a bucket nothing can be renamed. There the result is
written under its final name and marked as incomplete until the end (`buckets.uploads`).

An interrupted piece is repeated completely. A piece depends only on its number, so interruptions do not change the
result.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from xpsr_jax.buckets.cache import INCOMPLETE
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.buckets.uploads import local_workplace, mark_incomplete, upload_files
from xpsr_jax.data import worker_process
from xpsr_jax.data.sample_sources import StoredSource
from xpsr_jax.data.samples import Sample, StoredSample
from xpsr_jax.errors import UserError, say
from xpsr_jax.files import beside, check_free, check_writable, remove_tree
from xpsr_jax.json_files import as_json, read_json, write_json
from xpsr_jax.locks import locked_output

REPORT = "prepared.json"


@dataclass
class Outcome:
    """The outcome of one piece, or of all pieces.

    Attributes:
      written: number of written images, pairs or embeddings.
      broken: images that cannot be read, with the reason.
      small: images that are too small, with their size.
      captions: captions by name, which are used at the end of the work.
    """

    written: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    small: dict[str, str] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)

    def add(self, other: "Outcome") -> None:
        """Adds the outcome of another piece."""
        self.written += other.written
        self.broken |= other.broken
        self.small |= other.small
        self.captions |= other.captions


@dataclass(frozen=True)
class Choice:
    """The conditions for using an image.

    Attributes:
      minimum_pixels, minimum_bytes: smaller images and files are left out and reported.
      on_error: "skip": an image that cannot be read is left out and reported; "stop": it ends the work.
    """

    minimum_pixels: int = 384**2
    minimum_bytes: int = 0
    on_error: Literal["skip", "stop"] = "skip"

    def read(self, source: StoredSource, index: int, outcome: Outcome) -> tuple[StoredSample, Sample] | None:
        """The image, undecoded and decoded. None for an image to leave out; `outcome` then gets the reason."""
        try:
            record = source.record(index)
            sample = record.decode(source.root)
        except UserError as error:
            if self.on_error == "stop":
                raise
            name = getattr(source, "names", None)
            outcome.broken[name[index] if name else f"record {index}"] = str(error)
            return None
        height, width = sample.image.shape[:2]
        if height * width < self.minimum_pixels or len(record.image) < self.minimum_bytes:
            outcome.small[record.path] = f"{width} x {height} pixels, {len(record.image)} bytes"
            return None
        return record, sample


# Does one piece. Arguments: the folder to write to, the piece's number, and the numbers of its items.
Do = Callable[[Path, int, range], Outcome]
# Completes the result. Arguments: the folder to write to, the folder with the pieces, and their outcomes.
Finish = Callable[[Path, Path, list[Outcome]], None]


def work(
    output: Path,
    do: Do,
    pieces: Sequence[range],
    *,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    workers: int,
    finish: Finish = lambda folder, written, outcomes: None,
    unit: str = "image",
) -> Outcome:
    """Does all unfinished pieces, then makes the output. Does nothing if the same output exists already.

    Args:
      output: the folder to make.
      do: picklable if `workers` is above 1. Its result must depend only on its arguments.
      settings: all settings that affect the result, as JSON values. Unfinished work with other settings is not resumed.
      defaults: defaults of settings, for work of an older version that did not record all of them.
      workers: number of processes; 1: only this process.
      finish: completes the folder after the last piece. It gets the outcomes in the order of the pieces.

    Raises:
      UserError: the output exists and is something else, cannot be written, is being written by another process, or is
        unfinished work with other settings; or all images were left out.
    """
    settings, defaults = as_json(settings), as_json(defaults or {})
    progress = beside(output, "progress")
    if (output / REPORT).is_file() and not (output / INCOMPLETE).is_file():
        report = read_json(output / REPORT)
        if not _changed(report.pop("settings", {}), settings, defaults):
            remove_tree(progress)
            return Outcome(**report)
    if isinstance(output, BucketPath):
        with locked_output(output):
            _begin_in_bucket(output, progress, settings, defaults)
            do, finish = _Uploading(do), _FinishingInBucket(finish)
            total = _work(output, output, do, pieces, settings=settings, workers=workers, finish=finish, unit=unit)
            (output / INCOMPLETE).unlink()
            remove_tree(progress)
            return total
    check_free(output)
    with locked_output(output):
        partial = beside(output, "partial")
        _begin(partial, progress, settings, defaults)
        total = _work(output, partial, do, pieces, settings=settings, workers=workers, finish=finish, unit=unit)
        partial.rename(output)
        shutil.rmtree(progress)
        return total


def _work(
    output: Path,
    partial: Path,
    do: Do,
    pieces: Sequence[range],
    *,
    settings: Mapping[str, Any],
    workers: int,
    finish: Finish,
    unit: str,
) -> Outcome:
    progress = beside(output, "progress")
    outcomes = {number: outcome for number in range(len(pieces)) if (outcome := _done(progress, number))}
    todo = [(number, piece) for number, piece in enumerate(pieces) if number not in outcomes]
    initial = sum(len(pieces[number]) for number in outcomes)
    with tqdm(total=sum(map(len, pieces)), initial=initial, unit=unit, disable=None) as bar:
        for number, outcome in _perform(do, partial, todo, workers):
            for name, reason in outcome.broken.items():
                say(f"left out: {name}: {reason}")
            write_json(dataclasses.asdict(outcome), progress / f"{number}.json")
            outcomes[number] = outcome
            bar.update(len(pieces[number]))
    in_order = [outcomes[number] for number in range(len(pieces))]
    total = Outcome()
    for outcome in in_order:
        total.add(outcome)
    if not total.written:
        reasons = [*total.broken.values(), *total.small.values()]
        why = reasons[0] if reasons else "there are no images"
        raise UserError(f"no image can be used, so nothing is written to {output}, for instance: {why}")
    finish(partial, partial, in_order)
    report = {name: value for name, value in dataclasses.asdict(total).items() if name != "captions"}
    write_json({"settings": settings} | report, partial / REPORT)
    return total


def cut(count: int, size: int) -> list[range]:
    """The numbers below `count` in pieces of this size. The last piece may be smaller."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


@dataclass(frozen=True)
class _Uploading:
    """Does a piece in a local folder and uploads its files."""

    do: Do

    def __call__(self, folder: Path, number: int, numbers: range) -> Outcome:
        assert isinstance(folder, BucketPath)
        with local_workplace(folder) as place:
            outcome = self.do(place, number, numbers)
            upload_files(place, folder)
        return outcome


@dataclass(frozen=True)
class _FinishingInBucket:
    """Completes the result in a local folder and uploads the new files."""

    finish: Finish

    def __call__(self, folder: Path, written: Path, outcomes: list[Outcome]) -> None:
        assert isinstance(folder, BucketPath)
        with local_workplace(folder) as place:
            self.finish(place, written, outcomes)
            upload_files(place, folder)


def _begin_in_bucket(
    output: BucketPath, progress: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    known = progress / "settings.json"
    if known.is_file() and (output / INCOMPLETE).is_file():
        _check_same(output, known, settings, defaults)
        return
    check_free(output)
    remove_tree(progress)
    check_writable(output)
    mark_incomplete(output)
    write_json(settings, known)


def _check_same(partial: Path, known: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    if changed := _changed(read_json(known), settings, defaults):
        raise UserError(
            f"{partial} is unfinished work with other settings ({'; '.join(changed)}). Set them back to resume it, or "
            "delete it"
        )


def _begin(partial: Path, progress: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    known = progress / "settings.json"
    if known.is_file() and partial.is_dir():
        _check_same(partial, known, settings, defaults)
        return
    for folder in (partial, progress):
        shutil.rmtree(folder, ignore_errors=True)
        check_writable(folder)
    write_json(settings, known)


def _changed(before: Mapping[str, Any], settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    before = {**defaults, **before}
    different = [name for name in settings if before.get(name) != settings[name]]
    return [f"{name}: was {before.get(name)!r}, is {settings[name]!r}" for name in different]


def _done(progress: Path, number: int) -> Outcome | None:
    file = progress / f"{number}.json"
    return Outcome(**read_json(file)) if file.is_file() else None


def _perform(do: Do, folder: Path, pieces: Sequence[tuple[int, range]], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Yields the outcomes in the order in which pieces finish."""
    if workers <= 1 or len(pieces) <= 1:
        worker_process.tune()
        for number, piece in pieces:
            yield number, _do(do, folder, number, piece)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(pieces)),
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(do, folder),
    )
    others = set(multiprocessing.active_children())
    try:
        futures = {pool.submit(_one, number, piece): number for number, piece in pieces}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps because memory ran out. Try fewer --workers; the command then resumes"
        ) from error
    except BaseException:
        # Unfinished pieces will be repeated, so waiting for them is not worth it.
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# The job of a worker process. It is sent only once, because a source may be large.
_job: tuple[Do, Path] | None = None


def _start(do: Do, folder: Path) -> None:
    global _job
    worker_process.begin_worker()
    _job = do, folder


def _one(number: int, piece: range) -> Outcome:
    assert _job is not None
    return _do(*_job, number, piece)


def _do(do: Do, folder: Path, number: int, piece: range) -> Outcome:
    try:
        return do(folder, number, piece)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from error
