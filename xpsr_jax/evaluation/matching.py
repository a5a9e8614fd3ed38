"""Which restored image belongs to which original: by path below the folder, without suffix."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.data.by_path import composed
from xpsr_jax.errors import UserError
from xpsr_jax.images.listing import list_inputs
from xpsr_jax.images.reading import read_size

# Where the sets that people share keep originals and inputs: ours and XPSR's; StableSR's, which SeeSR uses; BasicSR's.
REFERENCE_FOLDERS = ("HR", "test_HR", "gt", "GT")
LR_FOLDERS = ("LR", "test_LR", "lq", "LQ")
# What the folders of the paper's three sets are called, in any case.
SETS = {"drealsr": "DRealSR", "realsr": "RealSR", "div2k": "DIV2K-Val"}
# As many pairs of names as are compared in a second or two.
_GUESSES = 50_000


@dataclass(frozen=True)
class Comparison:
    """One original with what was made of it.

    Attributes:
        name: path of the original below its folder.
        reference: the original's file.
        restored: a file for each of the methods, in their order.
        lr: the input's file, if inputs were named.
        size: (height, width) of the original and the restored images.
    """

    name: str
    reference: Path
    restored: tuple[Path, ...]
    lr: Path | None
    size: tuple[int, int]


def set_folders(folder: Path) -> tuple[Path, Path | None]:
    """The folders of originals and of inputs of a set in a layout that is known; else the folder itself is originals.

    Known are, within `folder`, HR and LR, test_HR and test_LR, gt and lq.
    """
    for reference, lr in zip(REFERENCE_FOLDERS, LR_FOLDERS, strict=True):
        if (folder / reference).is_dir():
            return folder / reference, folder / lr if (folder / lr).is_dir() else None
    return folder, None


def name_of_set(folder: Path) -> str | None:
    """Which of the paper's sets a path looks like: StableSR's DrealSRVal_crop128, XPSR's RealSR_CenterCrop, …"""
    for part in reversed(folder.resolve().parts):
        for key, name in SETS.items():
            if key in part.lower().replace("_", "").replace("-", ""):
                return name
    return None


def match_images(
    restored: Mapping[str, Path],
    reference: Path,
    lr: Path | None = None,
    *,
    least_side: int = 1,
    unreadable: dict[str, str] | None = None,
) -> list[Comparison]:
    """Every original with its restored images, in natural order.

    Args:
        restored: folder of each method.
        reference: folder of originals.
        lr: folder of inputs; not all of them need be there.
        least_side: the shortest side, in pixels, that the metrics take.
        unreadable: takes, by the original's name, why an image cannot be read; the original is then left out. None:
            that is one more problem.

    Raises:
        UserError: names all at once: missing, extra and probably misnamed images, and those of another size, too
            small or unreadable.
    """
    originals, problems = _by_stem(reference)
    sizes: dict[str, tuple[int, int]] = {}
    broken: dict[str, str] = {}
    for stem, path in originals.items():
        try:
            sizes[stem] = read_size(path)
        except UserError as error:
            broken[stem] = str(error)
            continue
        if min(sizes[stem]) < least_side:
            height, width = sizes[stem]
            problems.append(f"too small: {path} has {width} x {height} pixels, the metrics take {least_side} a side")
    files: dict[str, dict[str, Path]] = {}
    for method, folder in restored.items():
        files[method], ambiguous = _by_stem(folder)
        problems += ambiguous + _compare_names(files[method], originals, folder, reference)
        problems += _compare_sizes(files[method], sizes, broken)
    if unreadable is None:
        problems += broken.values()
    else:
        unreadable |= {originals[stem].relative_to(reference).as_posix(): why for stem, why in broken.items()}
        if not problems and len(broken) == len(originals):
            problems += broken.values()
    if problems:
        summary = f"nothing was measured: {len(problems)} images do not fit:"
        raise UserError(summary, *(f"  {problem}" for problem in problems))
    inputs = _by_stem(lr)[0] if lr is not None else {}
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


def _by_stem(folder: Path) -> tuple[dict[str, Path], list[str]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    problems = []
    for each in list_inputs([folder]):
        stem = composed(each.name.with_suffix("").as_posix())
        if stem in found:
            problems.append(f"twice the same name: {found[stem]} and {each.path}")
        found.setdefault(stem, each.path)
    return found, problems


def _compare_names(
    restored: Mapping[str, Path], originals: Mapping[str, Path], folder: Path, reference: Path
) -> list[str]:
    missing = [stem for stem in originals if stem not in restored]
    extra = {stem: path for stem, path in restored.items() if stem not in originals}
    problems = []
    # Guessing compares all pairs of names. If hundreds do not match, the cause is not a slip of the finger.
    guess = extra if len(missing) * len(extra) <= _GUESSES else {}
    for stem in missing:
        if near := difflib.get_close_matches(stem, guess, n=1, cutoff=0.6):
            problems.append(f"misnamed? {extra.pop(near[0])}: there is {originals[stem]}")
        else:
            problems.append(f"missing: {originals[stem]} has no image in {folder}")
    return problems + [f"extra: {path} has no original in {reference}" for path in extra.values()]


def _compare_sizes(
    restored: Mapping[str, Path], sizes: Mapping[str, tuple[int, int]], broken: dict[str, str]
) -> list[str]:
    """What has another size than its original; what cannot be read is put into `broken`."""
    problems = []
    for stem in (stem for stem in sizes if stem in restored):
        try:
            height, width = read_size(restored[stem])
        except UserError as error:
            broken.setdefault(stem, str(error))
            continue
        if (height, width) != sizes[stem]:
            original = f"{sizes[stem][1]} x {sizes[stem][0]}"
            problems.append(f"size: {restored[stem]} has {width} x {height} pixels, its original {original}")
    return problems


def name_methods(folders: Sequence[Path]) -> dict[str, Path]:
    """A short name for each folder of results: as much of the end of its path as tells it from the others.

    Raises UserError if one is named twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError("a folder of results is named twice")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, folders, strict=True))
    raise AssertionError("different paths have different names")
