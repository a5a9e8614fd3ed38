"""Ready-made pairs in the layout of the released training set (method §6)."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.data.captions import Caption
from xpsr_jax.data.image_folder import leave_out
from xpsr_jax.data.samples import Sample, StoredSample
from xpsr_jax.errors import UserError
from xpsr_jax.images.listing import list_files, list_images, natural_order
from xpsr_jax.images.reading import read_bytes

# Folders of captions with one text file per image: for the HR image, for the LR image.
HIGH_HR, HIGH_LR = "highlevel_prompt_GT", "highlevel_prompt"
LOW_HR, LOW_LR = "lowlevel_prompt_q_GT", "lowlevel_prompt_q"
# Folder of the first stage's pictures of the LR images, at HR's size. The released training set does not have it.
CLEAN = "first_stage"
# A file beside the datasets with the hash of that first stage.
FIRST_STAGE_RECORD = "first_stage.json"


class OfflinePairs:
    """The pairs of `root`: `dataset_0/HR/a/b.png`, `dataset_0/LR/a/b.png`, `dataset_0/lowlevel_prompt_q/a/b.txt`, ...

    All folders `dataset_*` are used, in natural order; `root` may also be one such folder. Sample paths are
    `dataset_0/a/b.png`. A caption is the first line of its file; the LR image's caption is `lr_caption`. A folder
    `dataset_0/first_stage` is optional. If it exists, it must have a picture for each LR image.

    Args:
      root: the folder.
      exclude: names, paths (`dataset_0/a/b.png`) or folders (`dataset_0`, `dataset_0/a`) to leave out.
      missing_exclusions: "error" if an exclusion matches nothing, or "ignore".
      missing: "error" for a pair without a caption file, or "empty". An empty file is an empty caption.

    Raises:
      UserError: no pairs, an HR image without its LR image, an exclusion that matches nothing, a missing caption.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        exclude: Iterable[str] = (),
        missing_exclusions: Literal["error", "ignore"] = "error",
        missing: Literal["error", "empty"] = "error",
    ):
        self.root = as_path(root)
        datasets = find_datasets(self.root)
        if not datasets:
            raise UserError(f"There are no pairs in {self.root} (looked for dataset_*/HR and dataset_*/LR).")
        self._in_datasets = datasets != [""]
        names = [name for dataset in datasets for name in self._check(dataset, missing)]
        self.names = tuple(leave_out(names, tuple(exclude), self.root, missing_exclusions))
        if not self.names:
            raise UserError(f"No pair is left in {self.root} after exclusions; remove an exclusion.")

    def _check(self, dataset: str, missing: str) -> list[str]:
        """The names of a dataset's pairs. Lists folders instead of testing each file: there are millions of files."""
        folder = self.root / dataset
        names, lr = list_images(folder / "HR"), set(list_images(folder / "LR"))
        if absent := [name for name in names if name not in lr]:
            raise UserError(f"{folder / 'HR' / absent[0]} has no LR image ({len(absent)} missing); add it.")
        if (folder / CLEAN).is_dir() and (absent := sorted(set(names) - set(list_images(folder / CLEAN)))):
            raise UserError(
                f"{folder / 'LR' / absent[0]} has no picture in {folder / CLEAN} ({len(absent)} missing); add it."
            )
        for kind in (HIGH_HR, HIGH_LR, LOW_HR, LOW_LR) if missing == "error" else ():
            texts = set(list_files(folder / kind, (".txt",)))
            if absent := [name for name in names if _text(name) not in texts]:
                raise UserError(
                    f"There is no caption {folder / kind / _text(absent[0])} ({len(absent)} missing). Write it (it may "
                    'be empty), or set missing_captions="empty".'
                )
        return [(PurePosixPath(dataset) / name).as_posix() for name in names]

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> StoredSample:
        """Both image files and both captions; `path` is relative to the folder."""
        name = self.names[index]
        dataset, inner = self._split(name)
        image, lr = (read_bytes(dataset / kind / inner) for kind in ("HR", "LR"))
        clean = read_bytes(dataset / CLEAN / inner) if (dataset / CLEAN).is_dir() else None
        caption, lr_caption = self._captions(name)
        return StoredSample(image, caption, name, lr_caption, lr, clean)

    def __getitem__(self, index: int) -> Sample:
        return self.record(index).decode(self.root)

    def captions(self) -> Iterator[Caption]:
        """All captions of the HR and the LR images."""
        for name in self.names:
            yield from self._captions(name)

    def _captions(self, name: str) -> tuple[Caption, Caption]:
        dataset, inner = self._split(name)
        texts = [_first_line(dataset / kind / _text(inner)) for kind in (HIGH_HR, LOW_HR, HIGH_LR, LOW_LR)]
        return Caption(*texts[:2]), Caption(*texts[2:])

    def _split(self, name: str) -> tuple[Path, str]:
        """The folder of a pair's dataset, and the pair's name inside it."""
        first, _, rest = name.partition("/")
        return (self.root / first, rest) if self._in_datasets else (self.root, name)


def find_datasets(root: Path) -> list[str]:
    """The folders under `root` that contain pairs: "dataset_0", ...; or "" for `root` itself."""
    folders = [folder.name for folder in root.glob("dataset_*") if (folder / "HR").is_dir()]
    if not folders and (root / "HR").is_dir() and (root / "LR").is_dir():
        return [""]
    return sorted(folders, key=natural_order)


def _text(image: str) -> str:
    return PurePosixPath(image).with_suffix(".txt").as_posix()


def _first_line(file: Path) -> str:
    """The first line of a file; empty if the file is missing. `_check` has tested whether it may be missing."""
    try:
        with file.open(encoding="utf-8-sig") as text:
            return text.readline().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the caption {file}: {error}") from error
