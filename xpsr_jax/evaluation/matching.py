"""Matches restored images with their originals, by path relative to the folder, without suffix."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.data.by_path import composed
from xpsr_jax.errors import UserError
from xpsr_jax.images.listing import list_inputs
from xpsr_jax.images.reading import read_size

# The folders of originals and inputs in common sets: ours, XPSR's, StableSR's (also used by SeeSR), BasicSR's.
REFERENCE_FOLDERS = ("HR", "test_HR", "gt", "GT")
LR_FOLDERS = ("LR", "test_LR", "lq", "LQ")
# Parts of the folder names of the paper's three sets, in lower case.
SETS = {"drealsr": "DRealSR", "realsr": "RealSR", "div2k": "DIV2K-Val"}
# A text in a name, and the text that replaces it.
Replacement = tuple[str, str]
# This many pairs of names are compared in one or two seconds.
_GUESSES = 50_000


@dataclass(frozen=True)
class Comparison:
    """One original with its restored images.

    Attributes:
        name: path of the original, relative to its folder.
        reference: file of the original.
        restored: one file for each method, in the order of the methods.
        lr: file of the input. None: inputs were not named, or this one is missing.
        size: (height, width) of the part that is compared. It begins at the upper left corner.
    """

    name: str
    reference: Path
    restored: tuple[Path, ...]
    lr: Path | None
    size: tuple[int, int]


def set_folders(folder: Path) -> tuple[Path, Path | None]:
    """Returns the folder of originals and the folder of inputs of a set.

    Known layouts inside `folder` are HR and LR, test_HR and test_LR, gt and lq. In any other layout, `folder` itself
    has the originals, and the folder of inputs is None.
    """
    for reference, lr in zip(REFERENCE_FOLDERS, LR_FOLDERS, strict=True):
        if (folder / reference).is_dir():
            return folder / reference, folder / lr if (folder / lr).is_dir() else None
    return folder, None


def name_of_set(folder: Path) -> str | None:
    """The set of the paper to which a path seems to belong, for example by StableSR's name DrealSRVal_crop128.

    Only the folder's name and its parent's count.
    """
    for part in reversed(folder.resolve().parts[-2:]):
        for key, name in SETS.items():
            if key in part.lower().replace("_", "").replace("-", ""):
                return name
    return None


def parse_match(text: str) -> Replacement:
    """OLD=NEW as (OLD, NEW).

    Raises UserError unless there is one "=" with something before it, and no folder in it.
    """
    old, sign, new = text.partition("=")
    if not old or not sign or "=" in new or "/" in text:
        raise UserError(
            f'--match must be OLD=NEW, what to replace in the names of results by what, such as "_LR4=_HR", with one '
            f'"=" and without "/", not "{text}"'
        )
    return composed(old), composed(new)


def match_images(
    restored: Mapping[str, Path],
    reference: Path,
    lr: Path | None = None,
    *,
    match: Replacement | None = None,
    crop_to_multiple: int = 1,
    least_side: int = 1,
    unreadable: dict[str, str] | None = None,
) -> list[Comparison]:
    """Matches every original with its restored images, in natural order.

    Args:
        restored: folder of each method.
        reference: folder of originals.
        lr: folder of inputs. Some inputs may be missing.
        match: text in the names of restored images and inputs, and the text that replaces it wherever it occurs, to
            get the names of the originals. None: the names are the same.
        crop_to_multiple: sides are cropped to a multiple of this number of pixels before sizes are compared.
        least_side: the shortest side that the metrics accept, in pixels.
        unreadable: a dict that collects the reasons why images cannot be read, by the original's name. These originals
            are skipped. None: an unreadable image is a problem.

    Raises:
        UserError: some images are missing, extra, probably misnamed, too small, unreadable, or have another size. The
            message lists all of them. Or no restored image has the text of `match` in its name.
    """
    cropped = "" if crop_to_multiple == 1 else f" when cropped to a multiple of {crop_to_multiple}"

    def size_of(path: Path) -> tuple[int, int]:
        height, width = read_size(path)
        return height - height % crop_to_multiple, width - width % crop_to_multiple

    originals, problems = _by_stem(reference)
    sizes: dict[str, tuple[int, int]] = {}
    broken: dict[str, str] = {}
    for stem, path in originals.items():
        try:
            sizes[stem] = size_of(path)
        except UserError as error:
            broken[stem] = str(error)
            continue
        if min(sizes[stem]) < least_side:
            height, width = sizes[stem]
            has = f"{width} x {height} pixels{cropped}"
            problems.append(f"too small: {path} has {has}, the metrics need {least_side} per side")
    files: dict[str, dict[str, Path]] = {}
    ambiguous: list[str] = []
    for method, folder in restored.items():
        files[method], twice = _by_stem(folder, match)
        ambiguous += twice
        problems += twice + _compare_names(files[method], originals, folder, reference)
        problems += _compare_sizes(files[method], sizes, broken, size_of, cropped)
    names = (composed(path.stem) for found in files.values() for path in found.values())
    if match and not ambiguous and not any(match[0] in name for name in names):
        folders = ", ".join(map(str, restored.values()))
        raise UserError(f'--match: no image in {folders} has "{match[0]}" in its name')
    if unreadable is None:
        problems += broken.values()
    else:
        unreadable |= {originals[stem].relative_to(reference).as_posix(): why for stem, why in broken.items()}
        if not problems and len(broken) == len(originals):
            problems += broken.values()
    inputs, twice = _by_stem(lr, match) if lr is not None else ({}, [])
    if problems := problems + twice:
        hint = "" if match or crop_to_multiple > 1 else " (see also --match and --crop-to-multiple)"
        summary = f"nothing was measured: {len(problems)} images cannot be matched{hint}:"
        raise UserError(summary, *(f"  {problem}" for problem in problems))
    return [
        Comparison(
            path.relative_to(reference).as_posix(),
            path,
            tuple(files[method][stem] for method in restored),
            inputs.get(stem),
            sizes[stem],
        )
        for stem, path in originals.items()
        if stem not in broken
    ]


def _by_stem(folder: Path, match: Replacement | None = None) -> tuple[dict[str, Path], list[str]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    problems = []
    for each in list_inputs([folder]):
        stem = composed(each.name.with_suffix("").as_posix())
        if match:
            parent, slash, name = stem.rpartition("/")
            stem = parent + slash + name.replace(*match)
        if stem in found:
            problems.append(f"same name twice: {found[stem]} and {each.path}")
        found.setdefault(stem, each.path)
    return found, problems


def _compare_names(
    restored: Mapping[str, Path], originals: Mapping[str, Path], folder: Path, reference: Path
) -> list[str]:
    missing = [stem for stem in originals if stem not in restored]
    extra = {stem: path for stem, path in restored.items() if stem not in originals}
    problems = []
    # Guessing compares all pairs of names. If hundreds of names do not match, the cause is not a typing error.
    guess = extra if len(missing) * len(extra) <= _GUESSES else {}
    for stem in missing:
        if near := difflib.get_close_matches(stem, guess, n=1, cutoff=0.6):
            problems.append(f"misnamed? {extra.pop(near[0])} is similar to {originals[stem]}")
        else:
            problems.append(f"missing: {originals[stem]} has no image in {folder}")
    return problems + [f"extra: {path} has no original in {reference}" for path in extra.values()]


def _compare_sizes(
    restored: Mapping[str, Path],
    sizes: Mapping[str, tuple[int, int]],
    broken: dict[str, str],
    size_of: Callable[[Path], tuple[int, int]],
    cropped: str,
) -> list[str]:
    """Lists images that do not have the size of their original. Adds unreadable images to `broken`."""
    problems = []
    for stem in (stem for stem in sizes if stem in restored):
        try:
            height, width = size_of(restored[stem])
        except UserError as error:
            broken.setdefault(stem, str(error))
            continue
        if (height, width) != sizes[stem]:
            original = f"{sizes[stem][1]} x {sizes[stem][0]}{cropped}"
            problems.append(f"size: {restored[stem]} has {width} x {height} pixels, but its original has {original}")
    return problems


def name_methods(folders: Sequence[Path]) -> dict[str, Path]:
    """Gives each folder of results a short name: the end of its path, as long as needed to be unique.

    Raises UserError if a folder is named twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError("a folder of results is named twice")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    raise AssertionError("different paths have different names")
