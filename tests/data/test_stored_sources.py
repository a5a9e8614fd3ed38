"""Stored photographs: ArrayRecord files and ready-made pairs, and mixtures of sources."""

import collections
import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from xpsr_jax.data.captions import Caption, write_captions
from xpsr_jax.data.config import DataConfig
from xpsr_jax.data.examples import make_example, make_pair
from xpsr_jax.data.image_folder import ImageFolder
from xpsr_jax.data.offline_pairs import OfflinePairs
from xpsr_jax.data.resize import resize
from xpsr_jax.data.sample_sources import Mixture, open_sample_source
from xpsr_jax.data.samples import Sample, StoredSample, pack
from xpsr_jax.data.stored_records import StoredRecords, open_array_records
from xpsr_jax.errors import UserError
from xpsr_jax.images.reading import read_image


def png(seed: int, height: int = 12, width: int = 16) -> bytes:
    image = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


RECORDS = [
    StoredSample(png(0), Caption("a cat", "sharp"), "a/0.png"),
    StoredSample(png(1), Caption(), "1.png", Caption("a blurred dog", "blurry"), png(2, 3, 4)),
    StoredSample(png(3), Caption("ünïcode", ""), "2.png"),
]


def write_records(file: Path, records) -> None:
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(pack(record))
    writer.close()


@pytest.fixture
def files(tmp_path) -> Path:
    write_records(tmp_path / "x.array_record-00000-of-00002", RECORDS[:2])
    write_records(tmp_path / "x.array_record-00001-of-00002", RECORDS[2:])
    return tmp_path


def assert_same(sample: Sample, expected: Sample) -> None:
    np.testing.assert_array_equal(sample.image, expected.image)
    assert (sample.lr is None) == (expected.lr is None)
    if sample.lr is not None:
        np.testing.assert_array_equal(sample.lr, expected.lr)
    rest = [(s.caption, s.path, s.lr_caption) for s in (sample, expected)]
    assert rest[0] == rest[1]


def test_records_are_read_back_unchanged(files):
    source = open_sample_source(files)
    assert isinstance(source, StoredRecords) and len(source) == 3
    for given in (
        source,
        pickle.loads(pickle.dumps(source)),
        open_sample_source(files / "x.array_record-00000-of-00002"),
    ):
        for i in range(len(given)):
            assert given.record(i) == RECORDS[i]
            assert_same(given[i], RECORDS[i].decode(Path()))
    assert source[-1].path == "2.png"
    with pytest.raises(IndexError):
        source[3]
    assert list(source.captions()) == [
        Caption("a cat", "sharp"), Caption(), Caption("a blurred dog", "blurry"), Caption("ünïcode", "")
    ]  # fmt: skip


def test_captions_from_a_file_override_stored_ones(files, tmp_path):
    write_captions(tmp_path / "new.jsonl", {"a/0.png": Caption("new", "words")})
    source = open_sample_source(files, captions=tmp_path / "new.jsonl", lr_captions={"2.png": Caption("lr", "")})
    assert source[0].caption == Caption("new", "words") and source[0].lr_caption is None
    with pytest.raises(UserError, match=r"No caption for '1\.png'"):
        source[1]
    empty = open_sample_source(
        files, captions=tmp_path / "new.jsonl", missing="empty", lr_captions={"2.png": Caption("lr")}
    )
    assert empty[2].caption == Caption() and empty[2].lr_caption == Caption("lr")


def test_broken_records(files, tmp_path):
    (files / "x.array_record-00001-of-00002").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="has 1 of the 2 files x; add the others"):
        open_sample_source(files)
    (files / "x.array_record-00001-of-00002").write_bytes(b"no records")
    with pytest.raises(UserError, match="cannot be read as ArrayRecord files"):
        open_sample_source(files)
    with pytest.raises(UserError, match="exclude cannot be used with them"):
        open_sample_source(files, exclude=("a",))
    other = tmp_path / "other"
    other.mkdir()
    writer = ArrayRecordWriter(str(other / "y.array_record"), "group_size:1")
    writer.write(b"something else")
    writer.write(pack(replace(RECORDS[0], image=RECORDS[0].image[:100])))
    writer.close()
    source = open_array_records(other)
    with pytest.raises(UserError, match=r"other, record 0 is not a record of a photograph"):
        source[0]
    with pytest.raises(UserError, match=r"other/a/0\.png: damaged"):
        source[1]


@pytest.fixture
def released(tmp_path) -> Path:
    """Two folders in the layout of the released training set."""
    root = tmp_path / "trainset"
    for dataset, name, seed in (("dataset_2", "s/5", 5), ("dataset_10", "s/6", 6), ("dataset_10", "s/7", 7)):
        texts = {
            "highlevel_prompt_GT": f" HR {seed}\nsecond line",
            "highlevel_prompt": f"LR {seed}",
            "lowlevel_prompt_q": f"blurry {seed}",
            "lowlevel_prompt_q_GT": "",
        }
        for kind, text in texts.items():
            file = root / dataset / kind / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for kind, content in (("HR", png(seed, 32, 32)), ("LR", png(100 + seed, 32, 32))):
            file = root / dataset / kind / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return root


def test_released_pairs(released):
    source = open_sample_source(released)
    assert isinstance(source, OfflinePairs)
    assert source.names == ("dataset_2/s/5.png", "dataset_10/s/6.png", "dataset_10/s/7.png")
    sample = pickle.loads(pickle.dumps(source))[1]
    np.testing.assert_array_equal(sample.image, read_image(released / "dataset_10/HR/s/6.png"))
    np.testing.assert_array_equal(sample.lr, read_image(released / "dataset_10/LR/s/6.png"))
    assert sample.caption == Caption("HR 6", "") and sample.lr_caption == Caption("LR 6", "blurry 6")
    one = open_sample_source(released / "dataset_10")
    assert one.names == ("s/6.png", "s/7.png") and one[0].caption == sample.caption
    assert open_sample_source(released, exclude=("dataset_10",)).names == ("dataset_2/s/5.png",)
    assert len(list(source.captions())) == 6


def test_released_pairs_that_are_incomplete(released):
    with pytest.raises(UserError, match="captions cannot be used with them"):
        open_sample_source(released, captions={"x": Caption()})
    (released / "dataset_10/highlevel_prompt/s/7.txt").unlink()
    with pytest.raises(UserError, match=r"no caption .*dataset_10/highlevel_prompt/s/7\.txt \(1 missing\)"):
        open_sample_source(released)
    assert open_sample_source(released, missing="empty")[2].lr_caption == Caption("", "blurry 7")
    (released / "dataset_10/LR/s/6.png").unlink()
    with pytest.raises(UserError, match=r"dataset_10/HR/s/6\.png has no LR image"):
        open_sample_source(released, missing="empty")


def test_examples_of_ready_made_pairs(released, tokenizer):
    """Stored images are used unchanged. With the given probability the HR image and its caption are the input (§6)."""
    source = open_sample_source(released)
    config = DataConfig(crop_size=32, clean_input_probability=0.25, low_caption_from="drawn", high_caption_from="hr")
    sample, seen = source[0], collections.Counter()
    for index in range(200):
        example = make_example(sample, config, tokenizer=tokenizer, seed=0, index=index)
        np.testing.assert_allclose(example["hr"] * 127.5 + 127.5, sample.image, atol=2e-5)
        assert tokenizer.read(example["high_ids"]) == "HR 5"
        clean = np.allclose(example["lr"] * 255, sample.image, atol=2e-5)
        if not clean:
            np.testing.assert_allclose(example["lr"] * 255, sample.lr, atol=2e-5)
        seen[clean, tokenizer.read(example["low_ids"])] += 1
    assert seen.keys() == {(True, ""), (False, "blurry 5")}
    assert abs(seen[True, ""] / 200 - 0.25) < 3 * 0.031
    assert make_example(sample, replace(config, degrade=False), tokenizer=None, seed=0, index=1).keys() == {
        "hr", "key", "index"
    }  # fmt: skip


def test_crops_of_larger_pairs_and_smaller_lr_images():
    rng = np.random.default_rng(0)
    hr = rng.integers(256, size=(48, 64, 3), dtype=np.uint8)
    config = DataConfig(crop_size=32)
    pair = make_pair(Sample(hr, Caption(), "x", lr=hr[::-1, ::-1].copy()), config, rng)
    windows = np.lib.stride_tricks.sliding_window_view(hr, (32, 32, 3)).squeeze()
    [(top, left)] = np.argwhere((windows == pair.hr).all((-3, -2, -1)))
    np.testing.assert_array_equal(pair.lr, hr[::-1, ::-1][top : top + 32, left : left + 32])
    small = hr[:12, :16]
    pair = make_pair(Sample(hr, Caption(), "x", lr=small), replace(config, crop_size=64), rng)
    enlarged = np.clip(np.rint(resize(small / np.float32(255), (48, 64), "bicubic") * 255), 0, 255)
    np.testing.assert_array_equal(pair.lr[:48], enlarged)
    with pytest.raises(UserError, match=r"LR image of x has 15 x 12 pixels, its HR image 64 x 48"):
        make_pair(Sample(hr, Caption(), "x", lr=hr[:12, :15]), config, rng)


class Numbers:
    def __init__(self, name: str, count: int):
        self.name, self.count = name, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        assert 0 <= index < self.count
        return f"{self.name}{index}"


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        ((3, 6), (1, 2), (3, 6)),
        ((3, 6), (1, 1), (6, 6)),
        ((10, 5), (0.9, 0.1), (45, 5)),
        ((7, 1, 3), (0.5, 0.25, 0.25), (7, 4, 4)),
    ],
)
def test_mixtures_keep_their_shares_and_contain_every_sample(unchecked, counts, weights, expected):
    mixture = Mixture([Numbers(name, count) for name, count in zip("abc", counts, strict=False)], weights)
    drawn = collections.Counter(mixture[i] for i in range(len(mixture)))
    found = [[n for sample, n in drawn.items() if sample[0] == name] for name in "abc"[: len(counts)]]
    assert tuple(map(sum, found)) == expected
    assert tuple(map(len, found)) == counts
    assert all(max(each) - min(each) <= 1 for each in found)
    assert mixture[-1] == mixture[len(mixture) - 1] and pickle.loads(pickle.dumps(mixture))[0] == mixture[0]
    with pytest.raises(IndexError):
        mixture[len(mixture)]


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -1), (1, float("inf"))])
def test_wrong_weights(weights):
    with pytest.raises(UserError, match="needs a positive weight for each source"):
        Mixture([Numbers("a", 1), Numbers("b", 1)], weights)


def test_the_contents_of_a_path_decide_its_kind(files, released, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "x.png").write_bytes(png(0))
    with pytest.raises(UserError, match=r"There are no captions .*captions\.jsonl\. Write them"):
        open_sample_source(folder)
    assert isinstance(open_sample_source(folder, missing="empty"), ImageFolder)
    with pytest.raises(UserError, match="There is no image folder"):
        open_sample_source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a file with training images"):
        open_sample_source(folder / "x.png")
