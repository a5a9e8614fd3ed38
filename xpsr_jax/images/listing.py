"""Finding image files: in folders, by patterns, by name."""

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

# Captions and records of what was done lie beside pictures: no folder is short of a picture for them.
_OURS = (".jsonl",)


@dataclass(frozen=True)
class Input:
    """An image file to be restored.

    Attributes:
        path: where it is.
        name: its path below the folder it was found in, for a pattern below the part without wildcards, or its file
            name if it was named outright. Outputs are named after it.
    """

    path: Path
    name: Path


def list_inputs(paths: Sequence[Path], *, exclude: Path | None = None) -> list[Input]:
    """The image files that `paths` name, folders searched with their subfolders, in natural order (2 before 10).

    What is no file or folder may be a pattern: "photos/**/*.jpg". A file named twice is one input; a link to a file is
    an input of its own.

    Args:
        exclude: a folder to pass over: the output folder, which may lie within an input folder.

    Raises:
        UserError: a path does not exist, a folder holds no image, there is no path at all, or what is put into
            `exclude` would be found the next time.
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

    Raises UserError if there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such image folder")
    return _images_below(folder)


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Relative paths (forward slashes) of the files with these endings below a folder that may not exist."""
    return [name for name in _files_below(folder, None) if name.lower().endswith(suffixes)]


def absolute(path: Path) -> str:
    """The path from the root, or of its bucket."""
    return str(path) if isinstance(path, BucketPath) else os.path.abspath(path)


def real(path: Path) -> str:
    """The same without links."""
    return str(path) if isinstance(path, BucketPath) else os.path.realpath(path)


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which img2 comes before img10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _inputs_below(folder: Path, exclude: Path | None) -> list[Input]:
    _check_apart(folder, folder, exclude)
    return [Input(folder / name, Path(name)) for name in _images_below(folder, exclude)]


def _images_below(folder: Path, exclude: Path | None = None) -> list[str]:
    """Raises UserError if there is none. One line says which files are passed over."""
    found: list[str] = []
    others: Counter[str] = Counter()
    for name in _files_below(folder, exclude):
        if name.lower().endswith(endings()):
            found.append(name)
        elif (ending := PurePosixPath(name).suffix.lower()) not in _OURS:
            others[ending or "no ending"] += 1
    kinds, total = (
        listed(f"{ending} ({count})" for ending, count in sorted(others.items(), key=_most_first)),
        others.total(),
    )
    if not found:
        instead = f", and found {kinds}" if others else ""
        raise UserError(f"{folder}: no image in this folder (looked for {', '.join(endings())}{instead})")
    if others:
        say(f"{folder}: {total} {'file' if total == 1 else 'files'} passed over: {kinds}", to_stderr=True)
    return sorted(found, key=natural_order)


def _most_first(counted: tuple[str, int]) -> tuple[int, str]:
    ending, count = counted
    return -count, ending


def _files_below(folder: Path, exclude: Path | None) -> Iterator[str]:
    """Relative paths (forward slashes) of all files in a folder and its subfolders, in any order.

    Hidden ones are left out, and so is what `exclude` holds. Links to folders are followed, but not back to a folder
    around them.
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
            say(f"{folder / place}: passed over: {error.strerror}", to_stderr=True)
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
    """A file, the images of a folder, or what matches a pattern."""
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
    """What a pattern finds, files and what is below folders, named by the path below the part without wildcards."""
    root = _literal_part(pattern)
    rest = pattern.relative_to(root)
    # One that ends as in *.jpg finds no results of another ending, and those of the same would be inputs right now.
    if glob.has_magic(pattern.suffix or "*"):
        _check_apart(pattern, root, exclude)
    found = [root / name for name in sorted(glob.glob(str(rest), root_dir=root, recursive=True), key=natural_order)]
    # glob goes round in circles, 40 times, where a link leads back to a folder around it.
    matches = [match for match in found if not any(map(_leads_back, (match, *match.parents)))]
    if exclude is not None and _real(root) in (excluded := _real(exclude)).parents:
        matches = [match for match in matches if not (_real(match.parent) / match.name).is_relative_to(excluded)]
    if not matches:
        raise UserError(f"{pattern}: no such file or folder")
    return [Input(each.path, each.path.relative_to(root)) for each in list_inputs(matches, exclude=exclude)]


def _literal_part(pattern: Path) -> Path:
    """As much of the beginning as has no wildcards, or exists with them in its name."""
    root = Path()
    for part in pattern.parts:
        if glob.has_magic(part) and not os.path.isdir(root / part):
            break
        root /= part
    return root


def _leads_back(path: Path) -> bool:
    return path.is_symlink() and _real(path.parent).is_relative_to(_real(path))


def _real(path: Path) -> Path:
    """Without links; unlike `Path.resolve`, also for those that go round in a loop."""
    return Path(real(path))


def _check_apart(path: Path, folder: Path, exclude: Path | None) -> None:
    if exclude is not None and _real(folder) == _real(exclude):
        raise UserError(
            f"{path}: its results would lie among the inputs and be taken for such the next time: choose another "
            f"--output, such as {folder / 'restored'}"
        )
