"""TFDS datasets without tensorflow: from a user's own builder, and from `xpsr prepare records`."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from xpsr_jax.data.captions import Caption
from xpsr_jax.data.image_folder import ImageFolder
from xpsr_jax.data.sample_sources import open_sample_source
from xpsr_jax.errors import UserError
from xpsr_jax.preparation.pieces import Choice
from xpsr_jax.preparation.write_records import WriteRecords, write_tfds_metadata

COLORS = [(40 * i, 100, 200) for i in range(4)]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, color in enumerate(COLORS):
        Image.new("RGB", (20 + i, 30), color).save(folder / f"{i}.png")
    return folder


class Birds(tfds.core.GeneratorBasedBuilder):
    """A typical user's builder."""

    __module__ = "birds"  # In a package TFDS would need importlib_resources, which it does not install.
    VERSION = tfds.core.Version("1.0.0")
    photos: Path
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "high": tfds.features.Text()})

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.features)

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for i in range(len(COLORS)):
            yield i, {"image": str(self.photos / f"{i}.png"), "high": f"bird {i}"}


def test_a_users_own_builder(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Birds, "photos", photos, raising=False)
    builder = Birds(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare()
    source = pickle.loads(pickle.dumps(open_sample_source(Path(builder.data_dir))))
    found = {source[i].caption.high: source[i].image for i in range(len(source))}
    assert sorted(found) == [f"bird {i}" for i in range(4)]
    for i, color in enumerate(COLORS):
        assert found[f"bird {i}"].shape == (30, 20 + i, 3) and (found[f"bird {i}"] == color).all()
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match="is not a TFDS dataset of photographs"):
        (Path(builder.data_dir) / "features.json").write_text("{}")
        open_sample_source(Path(builder.data_dir))


def test_prepared_records(photos, tmp_path):
    """TFDS itself can read them too."""
    captions = {f"{i}.png": Caption(f"high {i}", "löw") for i in range(4)}
    source = ImageFolder(photos, captions=captions, lr_captions={"1.png": Caption("of LR", "")})
    folder = tmp_path / "out"
    folder.mkdir()
    write = WriteRecords(source, Choice(minimum_pixels=0), "tfds", files=2, pairs=False)
    outcomes = [write(folder, number, piece) for number, piece in enumerate((range(3), range(3, 4)))]
    write_tfds_metadata(folder, folder, outcomes, pairs=False)
    stored = open_sample_source(folder)
    assert [stored.record(i) for i in range(4)] == [source.record(i) for i in range(4)]
    examples = list(tfds.builder_from_directory(str(folder)).as_data_source(split="train"))
    assert [example["path"] for example in examples] == [b"0.png", b"1.png", b"2.png", b"3.png"]
    np.testing.assert_array_equal(examples[2]["image"], source[2].image)
    assert "tensorflow" not in sys.modules
