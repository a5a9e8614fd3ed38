"""sample.py with existing results, results that cannot be written, and several processes; without real networks."""

import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import xpsr_jax
from tests.test_sample_cli import one_line, outputs
from xpsr_jax.cli import restore as sample
from xpsr_jax.errors import UserError
from xpsr_jax.inference import compilation, job, restore


class _Enlarged(restore.Restorer):
    """Replaces a Restorer: it only enlarges, and counts the images."""

    images = 0
    steps = 1

    def __init__(self, model, sampling, **_):
        self.sampling = sampling

    def enlarged_size(self, height, width):
        return 4 * height, 4 * width

    network_size = enlarged_size

    def plan(self, sizes):
        return [range(len(sizes))] if sizes else []

    def cells(self, network_size):
        return 1

    def __call__(self, images, captions, **_):
        _Enlarged.images += len(images)
        return [image.repeat(4, axis=0).repeat(4, axis=1) for image in images]


@pytest.fixture
def enlarged(monkeypatch):
    monkeypatch.setattr(restore, "Restorer", _Enlarged)
    monkeypatch.setattr(_Enlarged, "images", 0)
    monkeypatch.setattr(xpsr_jax, "load", lambda *_, **__: SimpleNamespace(note=""))
    monkeypatch.setattr(compilation, "with_fast_convolutions", lambda model: model)
    return _Enlarged


@pytest.fixture
def photos(tmp_path):
    """A folder of two photographs. The one in the subfolder is restored first."""
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    for i, name in enumerate(("a/c.jpg", "b.png")):
        Image.fromarray(np.full((8, 8, 3), 50 * i, np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def words(photos, tmp_path):
    """A command line that restores both photographs."""
    (tmp_path / "model").mkdir()
    argv = [photos, "--output", tmp_path / "out", "--model", tmp_path / "model", "--missing-captions", "empty"]
    return [str(word) for word in argv]


def test_one_result_that_cannot_be_written_does_not_affect_the_others(capsys, words, photos, tmp_path, enlarged):
    (tmp_path / "out" / "a" / "c.png").mkdir(parents=True)  # a folder in the place of the batch's first result
    words.append("--overwrite")
    assert f"{photos / 'a' / 'c.jpg'}: {tmp_path / 'out' / 'a' / 'c.png'} cannot be written" in one_line(capsys, words)
    assert outputs(tmp_path / "out") == ["b.png", "restored.jsonl"]
    (tmp_path / "out" / "b.png").unlink()
    assert "c.png cannot be written" in one_line(capsys, [*words, "--on-error", "skip"])
    assert outputs(tmp_path / "out") == ["b.png", "restored.jsonl"]


@pytest.mark.parametrize("full", [False, True])
def test_an_error_of_the_format_affects_one_image_and_a_full_disk_ends_the_job(
    capsys, words, tmp_path, monkeypatch, enlarged, full
):
    write, tried = job.write_restored, []

    def refuses_the_first(path, *args, **options):
        tried.append(path.name)
        if len(tried) == 1:
            cause = OSError(errno.ENOSPC, "full") if full else ValueError("EXIF data is too long")
            raise UserError(f"{path}: cannot be written: {cause}") from cause
        write(path, *args, **options)

    monkeypatch.setattr(job, "write_restored", refuses_the_first)
    error = one_line(capsys, [*words, "--on-error", "skip", "--format", "jpeg"])
    assert ("c.jpg: " in error and "EXIF data is too long; --format png may hold it" in error) is not full
    assert tried == (["c.jpg"] if full else ["c.jpg", "b.jpg"])
    assert outputs(tmp_path / "out") == ([] if full else ["b.jpg", "restored.jsonl"])


def test_a_result_that_is_too_wide_for_its_format_is_refused_first(capsys, words, photos, enlarged):
    Image.new("RGB", (8, 4096)).save(photos / "thin.png")
    error = one_line(capsys, [*words, "--on-error", "skip", "--format", "webp"])
    assert "thin.png: would be restored at 32 x 16384, and webp holds at most 16383" in error and enlarged.images == 2


def test_overwriting_can_be_resumed(capsys, words, tmp_path, enlarged):
    """It keeps the results that the same command has made, unless the model has changed since."""
    assert sample.main(words) == 0 and enlarged.images == 2
    words += ["--seed", "3", "--overwrite"]
    assert sample.main([*words[1:], words[0] + "/b.png"]) == 0 and enlarged.images == 3
    capsys.readouterr()
    assert sample.main(words) == 0 and enlarged.images == 4
    assert "1 of 2 images are already restored." in capsys.readouterr().out
    assert sample.main(words) == 0 and enlarged.images == 4
    os.utime(tmp_path / "out" / "b.png", (0, 0))  # older than the model
    assert sample.main(words) == 0 and enlarged.images == 5
    (tmp_path / "out" / "b.png").write_text("another's")
    assert sample.main(words) == 0 and enlarged.images == 6


def test_each_process_writes_a_page_of_its_successful_results(capsys, words, photos, tmp_path, enlarged):
    """One of the file names is not UTF-8."""
    latin = os.fsdecode(b"caf\xe9.png")
    shutil.copyfile(photos / "b.png", photos / latin)
    words += ["--compare", str(tmp_path / "page.html")]
    for process in "01":
        assert sample.main([*words, "--processes", "2", "--process", process]) == 0
    first, second = ((tmp_path / f"page-{i}-of-2.html").read_text(encoding="utf-8") for i in range(2))
    assert "a/c.jpg" in first and "caf?.png" in first and "b.png" not in first and "b.png" in second
    assert not (tmp_path / "page.html").exists()
    assert sample.main(words) == 0 and enlarged.images == 3
    assert "3 of 3 images are already restored." in capsys.readouterr().out

    (photos / "b.png").write_text("no picture")
    assert "b.png: not an image" in one_line(capsys, [*words, "--overwrite", "--on-error", "skip"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a/c.jpg" in page and "b.png" not in page and (tmp_path / "out" / "b.png").exists()
