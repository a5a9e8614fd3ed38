"""Finds image files: in folders, by patterns, or by name."""

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xpsr_jax.buckets.connection import explained
from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.errors import UserError, listed, say
from xpsr_jax.images.formats import endings

# Captions and records of finished work are often beside pictures. They are not reported as ignored files.
_OURS = (".jsonl",)


@dataclass(frozen=True)
class Input:
    """An image file to be restored.

    Attributes:
        path: the path of the file.
        name: the name for outputs. For a file found in a folder: its path relative to that folder. For a file found by
            a pattern: its path relative to the part of the pattern without wildcards. For a file that was named
            directly: its file name.
    """

    path: Path
    name: Path


def list_inputs(paths: Sequence[Path], *, exclude: Path | None = None) -> list[Input]:
    """Lists the image files in `paths`. Folders are searched with their subfolders, in natural order (2 before 10).

    A path that is not a file or folder may be a pattern, for example "photos/**/*.jpg". A file that is named twice is
    one input. A symbolic link to a file is a separate input.

    Args:
        paths: files, folders and patterns.
        exclude: a folder to ignore: the output folder, which may be inside an input folder.

    Raises:
        UserError: a path does not exist, a folder has no image, `paths` is empty, or the next call would find files
            that are put into `exclude`.
    """
    if not paths:
        raise UserError("no input: name at least one image or folder")
    found: dict[str, Input] = {}
    for path in map(as_path, paths):
        if isinstance(path, BucketPath):
            inputs = _inputs_in_bucket(path, exclude)
        elif os.path.isdir(path):
            inputs = _inputs_below(path, exclude)
        elif os.path.exists(path):
            inputs = [Input(path, Path(path.name))]
        else:
            inputs = _inputs_matching(path, exclude)
        for each in inputs:
            found.setdefault(absolute(each.path), each)
    return list(found.values())


def list_images(folder: Path) -> list[str]:
    """Relative paths (forward slashes) of the images in a folder and its subfolders, in natural order.

    Raises UserError if the folder does not exist or has no image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such image folder")
    return _images_below(folder)


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Relative paths (forward slashes) of the files with these suffixes below a folder. The folder may be missing."""
    return [name for name in _files_below(folder, None) if name.lower().endswith(suffixes)]


def absolute(path: Path) -> str:
    """The absolute path, or the full path in a bucket."""
    return str(path) if isinstance(path, BucketPath) else os.path.abspath(path)


def real(path: Path) -> str:
    """The absolute path with symbolic links resolved, or the full path in a bucket."""
    return str(path) if isinstance(path, BucketPath) else os.path.realpath(path)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key for which img2 comes before img10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _inputs_below(folder: Path, exclude: Path | None) -> list[Input]:
    _check_apart(folder, folder, exclude)
    return [Input(folder / name, Path(name)) for name in _images_below(folder, exclude)]


def _images_below(folder: Path, exclude: Path | None = None) -> list[str]:
    """Paths of the images below a folder. Raises UserError if there is none. Reports ignored files in one line."""
    found: list[str] = []
    others: Counter[str] = Counter()
    for name in _files_below(folder, exclude):
        if name.lower().endswith(endings()):
            found.append(name)
        elif (ending := PurePosixPath(name).suffix.lower()) not in _OURS:
            others[ending or "no suffix"] += 1
    kinds, total = (
        listed(f"{ending} ({count})" for ending, count in sorted(others.items(), key=_most_first)),
        others.total(),
    )
    if not found:
        instead = f", and found {kinds}" if others else ""
        raise UserError(f"{folder}: no image in this folder (looked for {', '.join(endings())}{instead})")
    if others:
        say(f"{folder}: {total} {'file' if total == 1 else 'files'} ignored: {kinds}", to_stderr=True)
    return sorted(found, key=natural_order)


def _most_first(counted: tuple[str, int]) -> tuple[int, str]:
    ending, count = counted
    return -count, ending


def _files_below(folder: Path, exclude: Path | None) -> Iterator[str]:
    """Relative paths (forward slashes) of all files in a folder and its subfolders, in any order.

    Hidden files and files in `exclude` are ignored. Links to folders are followed, except links to a folder that
    contains them.
    """
    if isinstance(folder, BucketPath):
        yield from _files_in_bucket(folder, exclude)
        return
    excluded = None if exclude is None else real(exclude)
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while pending:
        place, around = pending.pop()
        here = os.path.realpath(folder / place)
        if here in around or here == excluded:
            continue
        try:
            entries = [each for each in os.scandir(folder / place) if not each.name.startswith(".")]
        except FileNotFoundError:
            continue
        except OSError as error:
            say(f"{folder / place}: ignored: {error.strerror}", to_stderr=True)
            continue
        for entry in entries:
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                pending.append((f"{place}{entry.name}/", around | {here}))
            else:
                yield f"{place}{entry.name}"


def _files_in_bucket(folder: BucketPath, exclude: Path | None) -> Iterator[str]:
    for name in folder.files():
        inside = exclude is not None and (folder / name).is_relative_to(exclude)
        if not inside and not any(part.startswith(".") for part in name.split("/")):
            yield name


def _inputs_in_bucket(path: BucketPath, exclude: Path | None) -> list[Input]:
    """Inputs in a bucket: one file, the images of a folder, or the matches of a pattern."""
    if path.is_file():
        return [Input(path, Path(path.name))]
    if path.is_dir():
        return _inputs_below(path, exclude)
    root = BucketPath(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    if len(root.parts) < 2 or root == path:
        raise UserError(f"{path}: no such file or folder in the bucket")
    if glob.has_magic(path.suffix or "*"):
        _check_apart(path, root, exclude)
    with explained(path, "searched"):
        found = [root / key[len(root.key) + 1 :] for key in path.fs.glob(path.key)]
    outside = [each for each in found if exclude is None or not each.is_relative_to(exclude)]
    matches = sorted(outside, key=lambda each: natural_order(str(each)))
    if not matches:
        raise UserError(f"{path}: no such file or folder in the bucket")
    return [Input(each.path, each.path.relative_to(root)) for each in list_inputs(matches, exclude=exclude)]


def _inputs_matching(pattern: Path, exclude: Path | None) -> list[Input]:
    """The matches of a pattern: files, and images below folders. Names are relative to the part without wildcards."""
    root = _literal_part(pattern)
    rest = pattern.relative_to(root)
    # The check is not needed if the suffix has no wildcard (*.jpg). Results with another suffix do not match, and files
    # with the same suffix would be inputs already.
    if glob.has_magic(pattern.suffix or "*"):
        _check_apart(pattern, root, exclude)
    found = [root / name for name in sorted(glob.glob(str(rest), root_dir=root, recursive=True), key=natural_order)]
    # If a link leads to a folder that contains it, glob follows it again and again, 40 times.
    matches = [match for match in found if not any(map(_leads_back, (match, *match.parents)))]
    if exclude is not None and _real(root) in (excluded := _real(exclude)).parents:
        matches = [match for match in matches if not (_real(match.parent) / match.name).is_relative_to(excluded)]
    if not matches:
        raise UserError(f"{pattern}: no such file or folder")
    return [Input(each.path, each.path.relative_to(root)) for each in list_inputs(matches, exclude=exclude)]


def _literal_part(pattern: Path) -> Path:
    """The beginning of a pattern without wildcards. A folder that exists may have wildcard characters in its name."""
    root = Path()
    for part in pattern.parts:
        if glob.has_magic(part) and not os.path.isdir(root / part):
            break
        root /= part
    return root


def _leads_back(path: Path) -> bool:
    return path.is_symlink() and _real(path.parent).is_relative_to(_real(path))


def _real(path: Path) -> Path:
    """The path without symbolic links. Unlike `Path.resolve`, it does not fail for loops of links."""
    return Path(real(path))


def _check_apart(path: Path, folder: Path, exclude: Path | None) -> None:
    if exclude is not None and _real(folder) == _real(exclude):
        raise UserError(
            f"{path}: its results would be among the inputs, and the next run would restore them again: choose another "
            f"--output, such as {folder / 'restored'}"
        )
