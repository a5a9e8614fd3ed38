"""Where training photographs come from: random access to images with their captions."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Captions = Mapping[str, Caption] | str | os.PathLike | None


@dataclass(frozen=True)
class Sample:
    """One photograph.

    Attributes:
      image: RGB, 8 bits, upright.
      caption: of the photograph itself.
      path: of its file.
      lr_caption: of a degraded version of it, where there is one.
    """

    image: UInt8[np.ndarray, "h w 3"]
    caption: Caption
    path: str
    lr_caption: Caption | None = None


class Source(Protocol):
    """Anything with a length and samples by number: a folder, ArrayRecord files, a TFDS data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class ImageFolder:
    """The images under a folder, at any depth, in natural order (2 before 10).

    Args:
      root: the folder.
      exclude: names, relative paths or folders under `root` to leave out (held-out pictures).
      missing_exclusions: one that does not exist is an error, or ignored.
      captions: by path relative to `root`; or the JSON lines file of them; None: no captions, all empty.
      lr_captions: the same for captions of degraded versions (optional, also per image).
      missing: "error" for an image without a caption, or "empty".
      cache: keep decoded images in memory. For small folders: an image of 1440 x 960 takes 4 MB.
      minimum_pixels, minimum_bytes: leave out smaller images and files (the released training set: 384^2 and 100 KiB).

    Raises:
      UserError: no such folder, no image in it, an exclusion that matches nothing, a missing caption, captions of
        degraded versions of none of these images.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        exclude: Iterable[str] = (),
        missing_exclusions: Literal["error", "ignore"] = "error",
        captions: Captions = None,
        lr_captions: Captions = None,
        missing: Literal["error", "empty"] = "error",
        cache: bool = False,
        minimum_pixels: int = 0,
        minimum_bytes: int = 0,
    ):
        self.root = Path(root)
        names = _exclude(list_images(self.root), tuple(exclude), self.root, missing_exclusions)
        names = [n for n in names if _large_enough(self.root / n, pixels=minimum_pixels, size=minimum_bytes)]
        if not names:
            raise UserError(f"No image is left in {self.root} after exclusions and minimum sizes.")
        self.names = tuple(names)
        self._captions = self._match(captions, missing)
        self._lr_captions = _mapping(lr_captions)
        if lr_captions is not None and not self._lr_captions.keys() & set(names):
            raise UserError(
                f"The captions of degraded images name none of the images in {self.root}. Image paths are to be as in "
                f"captions.jsonl, like {names[0]!r}."
            )
        self._cache: dict[int, np.ndarray] | None = {} if cache else None

    def _match(self, captions: Captions, missing: str) -> dict[str, Caption]:
        if captions is None:
            return {}
        known = _mapping(captions)
        absent = [name for name in self.names if name not in known]
        if absent and missing == "error":
            where = "" if isinstance(captions, Mapping) else f" in {os.fspath(captions)}"
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise UserError(f'No caption{where} for {absent[0]!r}{more}. Add it, or set missing="empty".')
        return {name: known[name] for name in self.names if name in known}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self.names))[index]
        name = self.names[index]
        if self._cache is not None and index in self._cache:
            image = self._cache[index]
        else:
            image = read_image(self.root / name)
            if self._cache is not None:
                image.flags.writeable = False
                self._cache[index] = image
        caption = self._captions.get(name, Caption())
        return Sample(image, caption, str(self.root / name), self._lr_captions.get(name))


def list_images(root: str | os.PathLike) -> list[str]:
    """Relative paths (forward slashes) of the images under `root`, in natural order; hidden ones are left out."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no image folder {root}.")
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        found += [
            (relative / name).as_posix()
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise UserError(f"There is no image in {root} (looked for {', '.join(SUFFIXES)}).")
    return sorted(found, key=natural_key)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts numbers within names by value."""
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image to upright 8-bit RGB; transparency is dropped.

    Raises:
      UserError: missing, truncated or not an image; names the file.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):  # 16 bits: PIL would saturate where OpenCV scales
                image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR_RGB)
                if image is None:
                    raise OSError("OpenCV could not decode it")
                return image
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"Cannot read the image {path}: {error}") from error


def _mapping(captions: Captions) -> Mapping[str, Caption]:
    if captions is None:
        return {}
    return captions if isinstance(captions, Mapping) else read_captions(captions)


def _exclude(names: list[str], exclude: tuple[str, ...], root: Path, missing: str) -> list[str]:
    def matches(name: str, pattern: str) -> bool:
        return pattern in (name, Path(name).name) or name.startswith(pattern.rstrip("/") + "/")

    for pattern in exclude:
        if missing == "error" and not any(matches(name, pattern) for name in names):
            raise UserError(f"Nothing in {root} is called {pattern!r}, which is to be excluded. Check its spelling.")
    return [name for name in names if not any(matches(name, pattern) for pattern in exclude)]


def _large_enough(path: Path, *, pixels: int, size: int) -> bool:
    if path.stat().st_size < size:
        return False
    if pixels == 0:
        return True
    try:
        with Image.open(path) as picture:
            return picture.width * picture.height >= pixels
    except OSError as error:
        raise UserError(f"Cannot read the image {path}: {error}") from error
