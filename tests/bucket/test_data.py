"""Photographs, records and captions in buckets are read, written and resumed."""

import json
import pickle

import numpy as np
import pytest

from tests.training import tiny
from xpsr_jax.buckets import cache, lines, uploads
from xpsr_jax.buckets.cache import INCOMPLETE
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.cli import caption, prepare
from xpsr_jax.data import bucket_records
from xpsr_jax.data.captions import read_captions
from xpsr_jax.data.sample_sources import open_sample_source
from xpsr_jax.errors import UserError
from xpsr_jax.preparation import pieces

WORDS = ["--workers", "1", "--minimum-pixels", "1000"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny.make_photos(tmp_path_factory.mktemp("photos")).folder


def same(source, other) -> None:
    assert len(source) == len(other) == 5
    for i in range(5):
        one, two = source[i], other[i]
        np.testing.assert_array_equal(one.image, two.image)
        assert (one.path, one.caption) == (two.path, two.caption)


def test_interrupted_records_are_resumed_and_read(bucket: BucketPath, photos, monkeypatch):
    uploads.upload_files(photos, bucket / "photos")
    source, output = bucket / "photos", bucket / "records"
    same(open_sample_source(source), open_sample_source(photos))
    command = ["records", str(source), "--output", str(output), "--images-per-file", "2", *WORDS]
    done: list[int] = []

    def killed(do, folder, number, piece):
        if number == 2:
            raise KeyboardInterrupt
        done.append(number)
        return do(folder, number, piece)

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "_do", killed)
        assert prepare.main(command) == 130
    assert len([name for name in output.files() if "array_record" in name]) == 2 and done == [0, 1]
    with pytest.raises(UserError, match=f"{output} is incomplete"):
        open_sample_source(output)
    assert prepare.main([*command, "--minimum-bytes", "1"]) == 1  # other settings
    assert prepare.main(command) == 0
    assert INCOMPLETE not in output.files() and not (bucket / ".records.progress").exists()
    assert json.loads((output / "prepared.json").read_bytes())["written"] == 5
    assert prepare.main(command) == 0  # nothing to do
    same(open_sample_source(output), open_sample_source(photos))


def test_old_record_files_are_removed_from_the_cache(gs: BucketPath, photos, monkeypatch, tmp_path):
    output = gs / "records"
    command = ["records", str(photos), "--output", str(output), "--images-per-file", "1", *WORDS]
    assert prepare.main(command) == 0
    size = max(info["size"] for name, info in output.files().items() if "array_record" in name)
    monkeypatch.setenv("XPSR_JAX_BUCKET_CACHE_GB", str(2.5 * size / 1e9))
    source = open_sample_source(output)
    same(source, open_sample_source(photos))
    assert sum(used for _, _, used in cache._entries()) <= 2.5 * size
    same(pickle.loads(pickle.dumps(source)), source)
    # Their number is now known without a copy.
    with monkeypatch.context() as patch:
        patch.setattr(bucket_records, "copy_file", None)
        assert len(open_sample_source(output)) == 5
    monkeypatch.setenv("XPSR_JAX_BUCKET_CACHE_GB", str(0.5 * size / 1e9))
    monkeypatch.setenv("XPSR_JAX_CACHE", str(tmp_path / "other"))
    with pytest.raises(UserError, match="more than the limit of all local copies; raise XPSR_JAX_BUCKET_CACHE_GB"):
        open_sample_source(output)[3]


def test_tfds_and_pairs(gs: BucketPath, photos):
    for command in (["records", "--format", "tfds"], ["validation", "--crops", "1", "--crop-size", "64"]):
        output = gs / command[0]
        assert prepare.main([*command, str(photos), "--output", str(output), *WORDS]) == 0
    same(open_sample_source(gs / "records"), open_sample_source(photos))
    assert len(read_captions(gs / "validation" / "LR" / "captions.jsonl")) == 5
    assert (
        prepare.main(["pairs", str(photos), "--output", f"{gs}/pairs", "--rounds", "1", "--crop-size", "64", *WORDS])
        == 0
    )
    source = open_sample_source(gs / "pairs")
    assert len(source) == 5 and source[0].lr is not None


def test_captions_grow_in_parts_and_are_resumed(bucket: BucketPath, photos):
    uploads.upload_files(photos, bucket / "photos")
    (bucket / "photos" / "captions.jsonl").unlink()
    file = bucket / "photos" / "captions.jsonl"
    command = ["measured", f"{bucket}/photos", "--output", str(file), "--high", "a house"]
    assert caption.main([*command, "--limit", "2"]) == 0
    assert len(read_captions(file)) == 2
    whole = file.read_bytes().splitlines(keepends=True)
    # State after a kill: one line in the file, one in a part, and one that is cut off.
    lines.write_whole(file, whole[0])
    part = lines.Lines(file)
    part.append(whole[1])
    part.append(b'{"image": "4.pn')
    assert caption.main(command) == 0
    assert len(read_captions(file)) == 5 and not lines.parts_of(file)
    assert file.read_bytes().startswith(b"".join(whole))
    assert sorted((bucket / "photos").files()) == sorted([*(f"{i}.png" for i in range(5)), "captions.jsonl"])
