"""A folder of photographs."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.data.by_path import composed
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.data.samples import Sample, StoredSample
from xpsr_jax.errors import UserError
from xpsr_jax.images.listing import list_images
from xpsr_jax.images.reading import read_bytes

Captions = Mapping[str, Caption] | str | os.PathLike | None


class ImageFolder:
    """The images under a folder, at any depth, in natural order (2 before 10).

    Args:
      root: the folder.
      exclude: names, relative paths or folders under `root` to leave out (held-out pictures).
      missing_exclusions: "error" if an exclusion matches nothing, or "ignore".
      captions: captions by path relative to `root`, or the path of a JSON lines file; None: all captions are empty.
      lr_captions: captions of degraded versions, in the same form. Optional for each image.
      missing: "error" for an image without a caption, or "empty".

    Raises:
      UserError: a missing folder, a folder without images, an exclusion that matches nothing, a missing caption, or
        `lr_captions` that match none of the images.
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
    ):
        self.root = as_path(root)
        names = leave_out(list_images(self.root), tuple(exclude), self.root, missing_exclusions)
        if not names:
            raise UserError(f"No image is left in {self.root} after exclusions; remove an exclusion.")
        self.names = tuple(names)
        self._captions = self._match(captions, missing)
        self._lr_captions = as_mapping(lr_captions)
        if lr_captions is not None and not self._lr_captions.keys() & set(names):
            raise UserError(
                f"The captions of degraded images match none of the images in {self.root}. Write image paths as in "
                f"captions.jsonl, like {names[0]!r}."
            )

    def _match(self, captions: Captions, missing: str) -> dict[str, Caption]:
        if captions is None:
            return {}
        known = as_mapping(captions)
        absent = [name for name in self.names if name not in known]
        if absent and missing == "error":
            where = "" if isinstance(captions, Mapping) else f" in {captions}"
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise UserError(f'No caption{where} for {absent[0]!r}{more}. Add it, or set missing_captions="empty".')
        return {name: known[name] for name in self.names if name in known}

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> StoredSample:
        """The image file and its captions; `path` is relative to the folder."""
        name = self.names[index]
        captions = self._captions.get(name, Caption()), self._lr_captions.get(name)
        return StoredSample(read_bytes(self.root / name), captions[0], name, captions[1])

    def __getitem__(self, index: int) -> Sample:
        return self.record(index).decode(self.root)

    def captions(self) -> Iterator[Caption]:
        """All captions of the images and of their degraded versions."""
        for name in self.names:
            yield from (found[name] for found in (self._captions, self._lr_captions) if name in found)


def as_mapping(captions: Captions) -> Mapping[str, Caption]:
    """Captions by image path. If `captions` is a path, the file is read."""
    if captions is None:
        return {}
    return captions if isinstance(captions, Mapping) else read_captions(captions)


def leave_out(names: list[str], exclude: tuple[str, ...], root: Path, missing: Literal["error", "ignore"]) -> list[str]:
    """The names that match no exclusion (a name, a path or a folder).

    Raises UserError for an exclusion that matches no name, unless `missing` is "ignore".
    """

    def matches(name: str, pattern: str) -> bool:
        name, pattern = composed(name), composed(pattern)
        return pattern in (name, Path(name).name) or name.startswith(pattern.rstrip("/") + "/")

    for pattern in exclude:
        if missing == "error" and not any(matches(name, pattern) for name in names):
            raise UserError(f"The exclusion {pattern!r} matches no image in {root}. Check its spelling.")
    return [name for name in names if not any(matches(name, pattern) for pattern in exclude)]
