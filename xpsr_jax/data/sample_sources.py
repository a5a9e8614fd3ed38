"""Sources of training photographs: random access to images and their captions in all supported formats."""

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
    """Anything with a length and with samples by number. It must be picklable for worker processes.

    A sample depends only on its number.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


StoredSource = ImageFolder | OfflinePairs | StoredRecords
"""A source of stored images. It also has the undecoded `record` of a number, and all `captions()`."""


def open_sample_source(
    path: Path,
    *,
    exclude: tuple[str, ...] = (),
    missing_exclusions: Literal["error", "ignore"] = "error",
    captions: Captions = None,
    lr_captions: Captions = None,
    missing: Literal["error", "empty"] = "error",
) -> StoredSource:
    """Opens the source at `path`, whose contents decide its kind.

    The kinds are TFDS (dataset_info.json), ArrayRecord files, ready-made pairs (dataset_0/HR), or otherwise a folder
    of images.

    Args:
      exclude, missing_exclusions: as in `ImageFolder` and `OfflinePairs`.
      captions, lr_captions: caption files or captions by image path. None: an image folder's `captions.jsonl`, or the
        captions stored in a source of another kind.
      missing: "error" for an image without a caption, or "empty".

    Raises:
      UserError: the path is missing or its contents are broken, a caption is missing, or an option does not apply to
        this kind of source.
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
        raise UserError(f"{path} is not a file with training images; name a folder.")
    if find_datasets(path):
        _refuse(path, "ready-made pairs with captions of their own", captions=captions, lr_captions=lr_captions)
        return OfflinePairs(path, exclude=exclude, missing_exclusions=missing_exclusions, missing=missing)
    if captions is None:
        file = path / "captions.jsonl"
        if not file.is_file() and missing == "error":
            list_images(path)  # A folder without images raises an error here, which describes the problem better.
            raise UserError(
                f"There are no captions {file}. Write them, name another file with --images.captions (xpsr prepare: "
                "--captions), or use empty captions: --images.missing-captions empty (--missing-captions empty)."
            )
        given["captions"] = file if file.is_file() else None
    return ImageFolder(path, exclude=exclude, missing_exclusions=missing_exclusions, **given)


def _refuse(path: Path, kind: str, **options: Any) -> None:
    for name, value in options.items():
        if value:
            hint = " (use it in xpsr prepare)" if name == "exclude" else ""
            raise UserError(f"{path} contains {kind}: {name} cannot be used with them{hint}.")


class Skipping:
    """A source in which the next image replaces an image that cannot be read. Each bad image is reported once.

    A sample still depends only on its number. Every worker process reports bad images separately.
    """

    def __init__(self, source: SampleSource):
        self._source = source
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        """The sample, or the next readable one. Raises UserError if no image can be read."""
        first = range(len(self))[index]
        for number in itertools.chain(range(first, len(self)), range(first)):
            if number in self._broken:
                continue
            try:
                return self._source[number]
            except UserError as error:
                self._broken.add(number)
                say(f"{error}; the next image replaces it ({len(self._broken)} so far)", to_stderr=True)
        raise UserError("no image can be read; check the image folder")


class Cached:
    """Keeps the decoded samples of a source in memory. For small sources: an image of 1440 x 960 takes 4 MB.

    Every worker process has its own copy.
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

    Its length is the smallest one that contains every sample of each source and keeps the shares (to less than one
    sample). Samples of a source that is too short for its share are repeated. The sources follow one another, each in
    its own order; `make_pipeline` shuffles.

    Args:
      sources: one or more sources.
      weights: the shares: one positive number per source, relative to each other.
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
