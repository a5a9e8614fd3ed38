"""Uploads files and folders to buckets. A file is written atomically; a folder has a marker until it is complete."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xpsr_jax.buckets.cache import INCOMPLETE
from xpsr_jax.buckets.connection import tried, writing
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.errors import UserError


@contextlib.contextmanager
def new_file(file: BucketPath) -> Iterator[Path]:
    """Gives a local path to write to, which is uploaded as `file` at the end. After an error, nothing is uploaded."""
    with local_workplace(file) as folder:
        made = folder / file.name
        yield made
        file.upload(made)


@contextlib.contextmanager
def new_folder(folder: BucketPath) -> Iterator[Path]:
    """Gives a local folder to fill, which replaces `folder` at the end. After an error, nothing is uploaded."""
    with local_workplace(folder) as place:
        made = place / folder.name
        made.mkdir()
        yield made
        with incomplete(folder):
            before = [name for name in folder.files() if name != INCOMPLETE and not (made / name).is_file()]
            upload_files(made, folder)
            with writing(folder):
                if before:
                    folder.fs.rm([f"{folder.key}/{name}" for name in before])


@contextlib.contextmanager
def incomplete(folder: BucketPath) -> Iterator[None]:
    """Marks a folder as incomplete during the block. The marker is removed at the end, but kept after an error."""
    mark_incomplete(folder)
    yield
    (folder / INCOMPLETE).unlink(missing_ok=True)


def mark_incomplete(folder: BucketPath) -> None:
    """Marks a folder as incomplete, so that reading it is an error."""
    (folder / INCOMPLETE).write_bytes(b"This folder is incomplete: it is being written, or writing was stopped.\n")


def upload_files(source: Path, folder: BucketPath) -> list[str]:
    """Uploads all files below a local folder, many in parallel; returns their relative paths."""
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    with writing(folder):
        if names:
            targets = [f"{folder.key}/{name}" for name in names]
            tried(lambda: folder.fs.put([str(source / name) for name in names], targets))
    return names


def check_writable(folder: BucketPath) -> None:
    """Writes an object into a folder and removes it. Raises UserError if the bucket refuses."""
    probe = folder / f".probe-{os.getpid()}-{os.urandom(4).hex()}"
    probe.write_bytes(b"")
    probe.unlink(missing_ok=True)


@contextlib.contextmanager
def local_workplace(target: BucketPath) -> Iterator[Path]:
    """A temporary local folder for files that will be uploaded to a bucket."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="xpsr_jax-upload-"))
    except OSError as error:
        raise UserError(f"{target}: no temporary folder for it in {tempfile.gettempdir()}: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
