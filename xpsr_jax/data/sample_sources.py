"""Where training photographs come from: random access to images with their captions, whatever stores them."""

import bisect
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from xpsr_jax.buckets.cache import check_complete
from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.data.image_folder import Captions, ImageFolder
from xpsr_jax.data.offline_pairs import OfflinePairs, find_datasets
from xpsr_jax.data.samples import Sample
from xpsr_jax.data.stored_records import StoredRecords, list_array_records, open_array_records, open_tfds
from xpsr_jax.errors import UserError, say
from xpsr_jax.images.listing import list_images


@runtime_checkable
class SampleSource(Protocol):
    """Anything with a length and samples by number, and that can be pickled for worker processes.

    A sample depends on its number alone.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


StoredSource = ImageFolder | OfflinePairs | StoredRecords
"""A source of stored images: it also has the number's `record`, not decoded, and all `captions()`."""


def open_sample_source(
    path: Path,
    *,
    exclude: tuple[str, ...] = (),
    missing_exclusions: Literal["error", "ignore"] = "error",
    captions: Captions = None,
    lr_captions: Captions = None,
    missing: Literal["error", "empty"] = "error",
) -> StoredSource:
    """The source that `path` holds: TFDS (dataset_info.json), ArrayRecord files, ready-made pairs (dataset_0/HR), or
    else a folder of images.

    Args:
      exclude, missing_exclusions: as in `ImageFolder` and `OfflinePairs`.
      captions, lr_captions: files of captions, by image path; None: an image folder's are in its `captions.jsonl`, the
        others carry theirs.
      missing: an image without a caption is an error, or has an empty one.

    Raises:
      UserError: there is nothing there, it is broken, a caption is missing, or an option is not for such a source.
    """
    path = as_path(path)
    if isinstance(path, BucketPath):
        check_complete(path)
    if not path.exists():
        raise UserError(f"There is no image folder {path}.")
    given: dict[str, Any] = {"captions": captions, "lr_captions": lr_captions, "missing": missing}
    if (path / "dataset_info.json").is_file():
        _refuse(path, "a TFDS dataset", exclude=exclude)
        return open_tfds(path, **given)
    if list_array_records(path):
        _refuse(path, "ArrayRecord files", exclude=exclude)
        return open_array_records(path, **given)
    if path.is_file():
        raise UserError(f"{path} is a file of a kind that images cannot be taken from; name a folder.")
    if find_datasets(path):
        _refuse(path, "ready-made pairs with captions of their own", captions=captions, lr_captions=lr_captions)
        return OfflinePairs(path, exclude=exclude, missing_exclusions=missing_exclusions, missing=missing)
    if captions is None:
        file = path / "captions.jsonl"
        if not file.is_file() and missing == "error":
            list_images(path)  # If there are none, that is what is wrong.
            raise UserError(
                f"There are no captions {file}. Write them, name another file with --images.captions (xpsr prepare: "
                "--captions), or do without: --images.missing-captions empty (--missing-captions empty)."
            )
        given["captions"] = file if file.is_file() else None
    return ImageFolder(path, exclude=exclude, missing_exclusions=missing_exclusions, **given)


def _refuse(path: Path, kind: str, **options: Any) -> None:
    for name, value in options.items():
        if value:
            hint = " (xpsr prepare has it, too)" if name == "exclude" else ""
            raise UserError(f"{path} holds {kind}: {name} is not for them{hint}.")


class Skipping:
    """A source of which an image that cannot be read is named once, and the next one takes its place.

    So a sample still depends on its number alone. Worker processes name images each for themselves.
    """

    def __init__(self, source: SampleSource):
        self._source = source
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        """Raises UserError if none of all images can be read."""
        first = range(len(self))[index]
        for number in itertools.chain(range(first, len(self)), range(first)):
            if number in self._broken:
                continue
            try:
                return self._source[number]
            except UserError as error:
                self._broken.add(number)
                say(f"{error}; the next image takes its place ({len(self._broken)} such)", to_stderr=True)
        raise UserError("no image can be read")


class Cached:
    """Keeps the decoded samples of a source in memory: for small ones, an image of 1440 x 960 takes 4 MB.

    Worker processes do not share them.
    """

    def __init__(self, source: SampleSource):
        self._source = source
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        if index not in self._kept:
            sample = self._source[index]
            sample.image.flags.writeable = False
            self._kept[index] = sample
        return self._kept[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_kept": {}}


class Mixture:
    """Several sources, each with its share of the samples.

    It is as long as it must be for every sample of each source to be in it, and the shares to hold (to less than one
    sample): samples of a source that is short for its share come several times. A source's own order is kept, one
    source follows the other; `make_pipeline` shuffles.

    Args:
      sources: not empty.
      weights: positive, relative to each other.
    """

    def __init__(self, sources: Sequence[SampleSource], weights: Sequence[float]):
        if len(sources) != len(weights) or not all(0 < weight < math.inf for weight in weights):
            raise UserError(f"A mixture needs a positive weight for each source, got {', '.join(map(str, weights))}.")
        self.sources = tuple(sources)
        passes = max(len(source) / weight for source, weight in zip(sources, weights, strict=True))
        counts = [round(passes * weight) for weight in weights]
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        part = bisect.bisect_right(self._ends, index)
        source = self.sources[part]
        return source[(index - (self._ends[part - 1] if part else 0)) % len(source)]
