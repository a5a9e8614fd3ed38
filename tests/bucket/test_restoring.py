"""Restoring with model, captions, photographs and results in buckets."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xpsr_jax
from tests.inference.tiny_model import tiny_model
from tests.soak import runs
from xpsr_jax.buckets import uploads
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.cli import convert, evaluate, restore
from xpsr_jax.images.reading import read_image
from xpsr_jax.inference.manifest import NAME
from xpsr_jax.weights.model_folder import save

pytestmark = pytest.mark.usefixtures("compiled_quickly")
RNG = np.random.default_rng(0)
STEPS = ["--steps", "1", "--guidance-scale", "1"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(tiny_model(), folder)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with three photographs of one size, two of them in a subfolder, and their captions."""
    folder = tmp_path / "photos"
    names = ("b.png", "a/c.jpg", "a/d.png")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)
    lines = [json.dumps({"image": name, "high": "a house", "low": "blurry"}) for name in names]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.soak
def test_from_bucket_to_bucket(bucket: BucketPath, model_folder, photos, tmp_path, capsys):
    """Results equal those of local files, finished images are skipped, and evaluation works in the bucket."""
    uploads.upload_files(photos, bucket / "photos")
    assert convert.main([str(model_folder), "--output", f"{bucket}/model"]) == 0
    local = [str(photos), "--captions", str(photos / "captions.jsonl"), "--model", str(model_folder)]
    assert restore.main([*local, "--output", str(tmp_path / "out"), *STEPS]) == 0
    inputs = [f"{bucket}/photos", "--captions", f"{bucket}/photos/captions.jsonl", "--model", f"{bucket}/model"]
    command = [*inputs, "--output", f"{bucket}/out", *STEPS]
    assert restore.main(command) == 0
    names = ["a/c.png", "a/d.png", "b.png"]
    assert sorted((bucket / "out").files()) == [*names, NAME]
    for name in names:
        np.testing.assert_array_equal(read_image(bucket / "out" / name), read_image(tmp_path / "out" / name))
    capsys.readouterr()
    # State after a kill before the last image: its line may exist, but the picture does not.
    (bucket / "out" / "b.png").unlink()
    assert restore.main(command) == 0
    assert "2 of 3 images are already restored." in capsys.readouterr().out
    assert len((bucket / "out" / NAME).read_bytes().splitlines()) == 4
    (bucket / "out" / "a" / "c.png").upload(tmp_path / "out" / "b.png")
    assert restore.main(command) == 1
    assert f"it is not the file that {NAME} records" in capsys.readouterr().err
    assert restore.main([*command, "--overwrite", "--compare", f"{bucket}/page.html"]) == 0
    assert (bucket / "page.html").stat().st_size > 1000
    words = ["--restored", f"{bucket}/out", "--reference", str(tmp_path / "out"), "--metrics", "psnr"]
    assert evaluate.main([*words, "--json", f"{bucket}/scores.json"]) == 0
    assert (bucket / "scores.json").is_file()


@pytest.mark.soak
@pytest.mark.long
def test_two_processes_share_the_images(bucket: BucketPath, model_folder, photos):
    uploads.upload_files(photos, bucket / "photos")
    uploads.upload_files(model_folder, bucket / "model")
    words = [sys.executable, "sample.py", f"{bucket}/photos", "--captions", f"{bucket}/photos/captions.jsonl"]
    words += ["--model", f"{bucket}/model", "--output", f"{bucket}/out", *STEPS, "--processes", "2", "--process"]
    for said in ("2 of 2 images restored", "2 of 2 images are already restored."):
        jobs = [runs.start([*words, str(i)]) for i in range(2)]
        first, second = (out for job in jobs for out in runs.ended_well(job))
        assert said in first and said.replace("2 of 2", "1 of 1") in second
        names = [name for name in (bucket / "out").files() if name.endswith(".png")]
        assert names == ["a/c.png", "a/d.png", "b.png"]


@pytest.mark.more
def test_patterns_and_single_files(gs: BucketPath, model_folder, photos):
    """One restoration with inputs, model and output in a bucket."""
    uploads.upload_files(photos, gs / "photos")
    uploads.upload_files(model_folder, gs / "model")
    words = ["--missing-captions", "empty", "--model", f"{gs}/model", "--output", f"{gs}/out", *STEPS]
    assert restore.main([f"{gs}/photos/**/*.png", f"{gs}/photos/a/c.jpg", *words]) == 0
    assert sorted((gs / "out").files()) == ["a/d.png", "b.png", "c.png", NAME]
    assert len((gs / "out" / NAME).read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{b}/none"], "{b}/none: no such file or folder in the bucket"),
        (["{b}/none/*.png"], "{b}/none/*.png: no such file or folder in the bucket"),
        (["{b}/a.png", "--output", "{b}"], "its results would be among the inputs|is an input and would be"),
        (["{b}/a.png", "--model", "{b}/none"], "{b}/none does not exist; expected a model folder"),
        (["{b}/a.png", "--captions", "{b}/none.jsonl"], "{b}/none.jsonl cannot be read: there is no such file"),
        (["{b}/a.png", "--output", "gs://no-such-bucket/out"], "cannot be written: there is no such bucket"),
        (["{b}/a.png", "--output", "https://example.org/out"], "https:// is not supported; use a local path, gs://"),
    ],
)
def test_wrong_paths_are_one_line_before_any_work(gs: BucketPath, photos, capsys, words, said):
    (gs / "a.png").upload(photos / "b.png")
    words = [word.format(b=gs) for word in words]
    output = [] if "--output" in words else ["--output", f"{gs}/out"]
    assert restore.main([*words, *output, "--missing-captions", "empty"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert any(each.format(b=gs) in line for each in said.split("|")), line


def test_an_incomplete_upload_of_a_model_is_refused(bucket: BucketPath, model_folder):
    uploads.upload_files(model_folder, bucket / "model")
    uploads.mark_incomplete(bucket / "model")
    with pytest.raises(xpsr_jax.errors.UserError, match=f"{bucket}/model is incomplete: its upload is running"):
        xpsr_jax.load(f"{bucket}/model")
