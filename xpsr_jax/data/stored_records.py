"""Photographs and captions stored by `xpsr prepare`, in ArrayRecord files or as a TFDS dataset."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from array_record.python.array_record_data_source import ArrayRecordDataSource

from xpsr_jax.buckets.cache import local_folder
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.data.bucket_records import BucketRecords
from xpsr_jax.data.captions import Caption
from xpsr_jax.data.image_folder import Captions, as_mapping
from xpsr_jax.data.samples import Sample, StoredSample, from_fields, unpack
from xpsr_jax.errors import UserError
from xpsr_jax.images.listing import natural_order

_FILE = re.compile(r"(?P<name>.+)\.array_record(-\d+-of-(?P<count>\d+))?")


class StoredRecords:
    """Records by number, with their own captions or with captions from a file.

    Args:
      root: the records' path, for messages.
      records: anything with a length and stored records by number.
      read: makes a `StoredSample` from a stored record and the record's name for messages.
      captions: captions by image path, or the path of a JSON lines file; they replace the records' captions. None: the
        records' captions.
      lr_captions: the same for degraded versions.
      missing: "error" when an image is read that `captions` does not contain, or "empty".
    """

    def __init__(
        self,
        root: Path,
        records: Any,
        read: Callable[[Any, str], StoredSample],
        *,
        captions: Captions = None,
        lr_captions: Captions = None,
        missing: Literal["error", "empty"] = "error",
    ):
        self.root = root
        self._records, self._read = records, read
        self._captions: Mapping[str, Caption] | None = None if captions is None else as_mapping(captions)
        self._lr_captions: Mapping[str, Caption] | None = None if lr_captions is None else as_mapping(lr_captions)
        self._missing = missing

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> StoredSample:
        """The image files as they were stored, and their captions."""
        index = range(len(self))[index]
        record = self._read(self._records[index], f"{self.root}, record {index}")
        if self._captions is not None:
            if record.path not in self._captions and self._missing == "error":
                raise UserError(
                    f'No caption for {record.path!r} of {self.root}. Add it, or set missing_captions="empty".'
                )
            record = dataclasses.replace(record, caption=self._captions.get(record.path, Caption()))
        if self._lr_captions is not None:
            record = dataclasses.replace(record, lr_caption=self._lr_captions.get(record.path))
        return record

    def __getitem__(self, index: int) -> Sample:
        return self.record(index).decode(self.root)

    def captions(self) -> Iterator[Caption]:
        """All captions of the images and of their degraded versions. Reads every record."""
        for index in range(len(self)):
            record = self.record(index)
            yield from (caption for caption in (record.caption, record.lr_caption) if caption is not None)


def open_array_records(path: Path, **options: Any) -> StoredRecords:
    """The records of one ArrayRecord file, or of all ArrayRecord files in a folder, in natural order.

    Args:
      options: `captions`, `lr_captions` and `missing` of `StoredRecords`.

    Raises:
      UserError: there are no ArrayRecord files, or one of the files NAME.array_record-00000-of-00008, ... is missing or
        broken.
    """
    files = list_array_records(path)
    if not files:
        raise UserError(f"There are no ArrayRecord files in {path} (looked for *.array_record*).")
    for file in files if path.is_dir() else ():
        match = _FILE.fullmatch(file.name)
        assert match is not None
        together = [other for other in files if other.name.startswith(f"{match['name']}.array_record-")]
        if match["count"] and len(together) != int(match["count"]):
            raise UserError(
                f"{path} has {len(together)} of the {int(match['count'])} files {match['name']}; add the others."
            )
    try:
        in_bucket = [file for file in files if isinstance(file, BucketPath)]
        records = BucketRecords(in_bucket) if in_bucket else ArrayRecordDataSource([str(file) for file in files])
        count = len(records)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as ArrayRecord files: {error}") from error
    if not count:
        raise UserError(f"There is no record in {path}. Make the files again with xpsr prepare records")
    return StoredRecords(path, records, unpack, **options)


def list_array_records(path: Path) -> list[Path]:
    """The ArrayRecord files in a folder, or the path itself if it is an ArrayRecord file."""
    files = [path] if path.is_file() else path.glob("*") if path.is_dir() else []
    return sorted((file for file in files if _FILE.fullmatch(file.name)), key=lambda file: natural_order(file.name))


def open_tfds(folder: Path, **options: Any) -> StoredRecords:
    """The records of a TFDS dataset in ArrayRecord format. Tensorflow is not needed.

    The feature `image` (or `hr`) is required; `path`, `high`, `low`, `lr`, `lr_high`, `lr_low` are optional.

    Args:
      folder: a folder with dataset_info.json, as a TFDS builder writes it. The split "train" is used, or the only
        split. A folder in a bucket is copied completely (`buckets.cache`).
      options: `captions`, `lr_captions` and `missing` of `StoredRecords`.

    Raises:
      UserError: TFDS is not installed, or the dataset has another format or lacks images.
    """
    tfds = import_tfds()
    try:
        builder = tfds.builder_from_directory(str(local_folder(folder)))
        features, splits = builder.info.features, builder.info.splits
        if "train" not in splits and len(splits) != 1:
            raise ValueError(f"it has no split train, only {', '.join(splits)}")
        images = {name for name, feature in features.items() if isinstance(feature, tfds.features.Image)}
        if not images & {"image", "hr"}:
            raise ValueError(f"it has no feature image, only {', '.join(features)}")
        undecoded = {name: tfds.decode.SkipDecoding() for name in images}
        split = "train" if "train" in splits else next(iter(splits))
        records = builder.as_data_source(split=split, decoders=undecoded)
        count = len(records)
    except (ValueError, NotImplementedError, KeyError, OSError, RuntimeError) as error:
        raise UserError(
            f"{folder} is not a TFDS dataset of photographs in ArrayRecord format: {error}. Build it with "
            'file_format="array_record"'
        ) from error
    if not count:
        raise UserError(f"There is no record in {folder}. Build the dataset again")
    return StoredRecords(folder, records, _from_tfds, **options)


def import_tfds() -> Any:
    """Imports tensorflow_datasets, which takes seconds. Raises UserError if it is not installed."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError('TFDS is not installed: pip install "xpsr-jax[tfds]"') from error
    return tensorflow_datasets


def _from_tfds(fields: dict[str, Any], where: str) -> StoredSample:
    image = fields.get("image", fields.get("hr"))
    return from_fields({name: value for name, value in fields.items() if isinstance(value, bytes)} | {"image": image})
