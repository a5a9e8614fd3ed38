"""Writes photographs and captions to ArrayRecord files, plain or as a TFDS dataset."""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from array_record.python.array_record_module import ArrayRecordWriter

from xpsr_jax.data.sample_sources import StoredSource
from xpsr_jax.data.samples import StoredSample, pack, to_fields
from xpsr_jax.data.stored_records import import_tfds
from xpsr_jax.errors import UserError
from xpsr_jax.preparation.pieces import Choice, Outcome

RecordFormat = Literal["array_record", "tfds"]
# Names of the dataset and the split in TFDS' file names.
DATASET, SPLIT = "photographs", "train"


@dataclass(frozen=True)
class WriteRecords:
    """Writes one file of records. Image files are copied unchanged and not encoded again.

    Attributes:
      files: number of files of all pieces together.
      pairs: whether every image has an LR image.
    """

    source: StoredSource
    choice: Choice
    format: RecordFormat
    files: int
    pairs: bool

    def __call__(self, folder: Path, number: int, numbers: range) -> Outcome:
        """Writes one piece's records. The outcome reports images that `choice` leaves out.

        Args:
          folder: an existing folder.
          number: the number of the piece and of its file, from 0.
          numbers: indices of the images in the source.

        Raises UserError if the file cannot be written.
        """
        encode: Callable[[StoredSample], bytes] = pack if self.format == "array_record" else _tfds_encoder(self.pairs)
        outcome = Outcome()
        file = folder / f"{DATASET}-{SPLIT}.array_record-{number:05d}-of-{self.files:05d}"
        # With groups of one, each record can be read without its neighbours.
        writer = ArrayRecordWriter(str(file), "group_size:1")
        try:
            for index in numbers:
                if found := self.choice.read(self.source, index, outcome):
                    writer.write(encode(found[0]))
                    outcome.written += 1
            writer.close()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{file} cannot be written: {error}") from error
        return outcome


def write_tfds_metadata(folder: Path, written: Path, outcomes: Sequence[Outcome], *, pairs: bool) -> None:
    """Writes dataset_info.json and features.json, which turn a folder of record files into a TFDS dataset.

    Args:
      folder: the folder for these two files.
      written: the folder with the record files.
      outcomes: the outcomes of the pieces, one per file.
    """
    tfds = import_tfds()
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=DATASET, split=SPLIT, filetype_suffix="array_record"
    )
    files = sorted(written.glob(f"{DATASET}-{SPLIT}.array_record-*"))
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[outcome.written for outcome in outcomes],
        num_bytes=sum(file.stat().st_size for file in files),
        filename_template=template,
    )
    # TFDS needs files with these names in the folder.
    stand_ins = [folder / file.name for file in files] if folder != written else []
    for each in stand_ins:
        each.touch()
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_tfds_features(pairs),
        split_infos=[split],
        filename_template=template,
        check_data=False,
    )
    for each in stand_ins:
        each.unlink()


def _tfds_features(pairs: bool) -> Any:
    tfds = import_tfds()
    image, text = tfds.features.Image(shape=(None, None, 3)), tfds.features.Text()
    texts = dict.fromkeys(("path", "high", "low", "lr_high", "lr_low"), text)
    return tfds.features.FeaturesDict({"image": image} | ({"lr": image} if pairs else {}) | texts)


@functools.cache
def _tfds_encoder(pairs: bool) -> Callable[[StoredSample], bytes]:
    import_tfds()
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = _tfds_features(pairs)
    serializer = ExampleSerializer(features.get_serialized_info())

    def encode(record: StoredSample) -> bytes:
        fields = {
            name: io.BytesIO(value) if isinstance(value, bytes) else value.encode(errors="surrogateescape")
            for name, value in to_fields(record).items()
            if name in features
        }
        # By default, the order of a message's entries differs between processes.
        example = serializer.get_tf_example(features.encode_example(fields))
        message: bytes = example.SerializeToString(deterministic=True)
        return message

    return encode
