"""`xpsr prepare`: the files that it writes, the images that it leaves out, and that stopped work is resumed."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from xpsr_jax.cli.prepare import main
from xpsr_jax.data.captions import Caption, read_captions, write_captions
from xpsr_jax.data.config import DataConfig
from xpsr_jax.data.image_folder import ImageFolder
from xpsr_jax.data.kernels import sharpen
from xpsr_jax.data.rounding import round_to_uint8
from xpsr_jax.data.sample_sources import open_sample_source
from xpsr_jax.data.stored_records import list_array_records
from xpsr_jax.errors import UserError
from xpsr_jax.images.reading import read_image
from xpsr_jax.preparation.pieces import Choice, Outcome, cut, work
from xpsr_jax.preparation.write_pairs import WritePairs

NAMES = ["a/1.png", "a/2.jpg", "b/10.webp", "truncated.png", "tiny.png", "text.jpg"]
WHOLE = ["a/1.png", "a/2.jpg", "b/10.webp"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three photographs, a truncated one, a tiny one, and a text file with an image's name."""
    folder = tmp_path_factory.mktemp("prepare") / "photos"
    rng = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (9, 8, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(coarse, (80, 72), interpolation=cv2.INTER_CUBIC))
    whole = (folder / "truncated.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(folder / "tiny.png"), np.zeros((20, 20, 3), np.uint8))
    (folder / "text.jpg").write_text("no image")
    write_captions(folder / "captions.jsonl", {name: Caption(f"in {name}", "sharp") for name in NAMES})
    return folder


def run(*arguments: object, workers: int = 1) -> int:
    return main([*map(str, arguments), "--workers", str(workers), "--minimum-pixels", "1000"])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


def test_records_leave_out_broken_and_small_images(photos, tmp_path, capsys):
    output = tmp_path / "out"
    assert run("records", photos, "--output", output, "--images-per-file", 2) == 1
    said = capsys.readouterr()
    assert "3 written to" in said.out and "left out: 2 broken, 1 too small" in said.out
    report = json.loads((output / "prepared.json").read_text())
    assert sorted(report["broken"]) == ["text.jpg", "truncated.png"] and sorted(report["small"]) == ["tiny.png"]
    assert report["written"] == 3 and "truncated" in report["broken"]["truncated.png"]
    source, original = open_sample_source(output), ImageFolder(photos, captions=photos / "captions.jsonl")
    assert [source.record(i) for i in range(3)] == [original.record(original.names.index(name)) for name in WHOLE]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("name", ["[a-b]", "x[0:3]", "what?*"])
def test_records_with_a_name_like_a_pattern_can_be_read_again(photos, tmp_path, name):
    """ArrayRecord treats [0:3] at the end of a path as a range of records."""
    folder = tmp_path / name
    folder.mkdir()
    for i, each in enumerate(WHOLE):
        shutil.copy(photos / each, folder / f"{name} {i}.png")
    output = tmp_path / f"out {name}"
    assert run("records", folder, "--output", output, "--missing-captions", "empty") == 0
    stored = open_sample_source(output)
    assert [stored[i].path for i in range(3)] == [f"{name} {i}.png" for i in range(3)]
    (file,) = list_array_records(output)
    assert len(open_sample_source(file)) == 3


def test_exit_codes(photos, tmp_path, capsys):
    good = ("--exclude", "truncated.png", "text.jpg")
    assert run("records", photos, "--output", tmp_path / "a", *good) == 0
    assert "left out: 0 broken, 1 too small" in capsys.readouterr().out
    before = contents(tmp_path)
    assert run("records", photos, "--output", tmp_path / "a", *good) == 0
    assert "left out: 0 broken, 1 too small" in capsys.readouterr().out and contents(tmp_path) == before
    assert run("records", photos, "--output", tmp_path / "a") == 1
    assert "already exists" in capsys.readouterr().err
    assert run("records", photos, "--output", tmp_path / "b", "--on-error", "stop") == 1
    assert "text.jpg: not an image" in capsys.readouterr().err and not (tmp_path / "b").exists()
    assert run("records", photos, "--output", tmp_path / "c", "--exclude", "a", "b") == 1
    assert "no image can be used" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_what_a_training_config_holds_out_is_left_out(photos, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from xpsr_jax.config import Config, Images\n"
        "VARIANTS = ('default',)\n"
        "def config(variant='default'):\n"
        "    return Config(images=Images(exclude=('truncated.png', 'gone.png'), missing_exclusions='ignore'))\n"
    )
    options = ("--exclude", "text.jpg", "--exclude-of", file)
    assert run("records", photos, "--output", tmp_path / "out", *options) == 0
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["settings"]["exclude"] == [
        "text.jpg",
        "truncated.png",
        "gone.png",
    ]


def test_pairs_with_the_plain_photograph_as_target(photos, tmp_path):
    for target in ("plain", "sharpened"):
        options = ("--rounds", 1, "--crop-size", 32, "--limit", 2, "--target", target)
        assert run("pairs", photos, "--output", tmp_path / target, *options) == 0
    plain, sharpened = (open_sample_source(tmp_path / target) for target in ("plain", "sharpened"))
    expected = round_to_uint8(sharpen(plain[0].image.astype(np.float32) / np.float32(255)))
    np.testing.assert_array_equal(sharpened[0].image, expected)
    assert (plain[0].image != expected).any()
    np.testing.assert_array_equal(plain[0].lr, sharpened[0].lr)


@pytest.mark.parametrize("command", ["records", "pairs"])
def test_two_processes_write_the_same_as_one(photos, tmp_path, command, monkeypatch):
    monkeypatch.setattr("xpsr_jax.cli.prepare._PAIRS_IN_A_PIECE", 2)
    options = {"records": ("--images-per-file", 2), "pairs": ("--rounds", 2, "--crop-size", 32)}[command]
    for workers in (1, 2):
        assert run(command, photos, "--output", tmp_path / str(workers), *options, workers=workers) == 1
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_pairs_in_the_released_layout(photos, tmp_path):
    assert run("pairs", photos, "--output", tmp_path / "out", "--rounds", 2, "--crop-size", 32, "--limit", 2) == 0
    source = open_sample_source(tmp_path / "out")
    names = [f"dataset_{i}/a/{j}.png" for i in (0, 1) for j in (1, 2)]
    assert [source[i].path for i in range(4)] == names
    for sample in (source[i] for i in range(4)):
        assert sample.image.shape == sample.lr.shape == (32, 32, 3)
        assert sample.caption.high.startswith("in a/") and sample.lr_caption.high == ""
        assert sample.caption.low and sample.lr_caption.low and sample.caption.low != sample.lr_caption.low
    crops = [source[i].image for i in (0, 2)]
    assert not np.array_equal(*crops), "each round has other crops"
    # Pairs cannot be made from ready-made pairs, but these can be stored in files of records.
    with pytest.raises(UserError, match="already contains pairs"):
        WritePairs(source, Choice(0), DataConfig(crop_size=32), 0, 4, False)(tmp_path, 0, range(1))
    assert run("records", tmp_path / "out", "--output", tmp_path / "stored") == 0
    stored = open_sample_source(tmp_path / "stored")
    assert [stored.record(i) for i in range(4)] == [source.record(i) for i in range(4)]


def test_pairs_for_evaluation(photos, tmp_path):
    """The DIV2K-Val protocol at a sixteenth of its size. LR is a quarter of HR, and photographs have several crops."""
    assert run("validation", photos, "--output", tmp_path / "out", "--crops", 3, "--crop-size", 32) == 1
    names = [f"{name}_{k}.png" for name in ("a/1", "a/2", "b/10") for k in range(3)]
    for kind, size in (("HR", 32), ("LR", 8)):
        folder = tmp_path / "out" / kind
        assert sorted(contents(folder).keys() - {"captions.jsonl"}) == sorted(names)
        assert {read_image(folder / name).shape for name in names} == {(size, size, 3)}
    captions = read_captions(tmp_path / "out" / "LR" / "captions.jsonl")
    assert sorted(captions) == sorted(names) and captions["a/1_2.png"].high == "in a/1.png"
    hr = [read_image(tmp_path / "out" / "HR" / f"a/1_{k}.png") for k in range(3)]
    assert not np.array_equal(hr[0], hr[1])


def test_two_images_with_the_same_name(tmp_path, capsys):
    for name in ("x.png", "x.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((40, 40, 3), np.uint8))
    assert run("pairs", tmp_path, "--output", tmp_path / "out", "--missing-captions", "empty") == 1
    assert "would have the same name" in capsys.readouterr().err


@dataclasses.dataclass
class Stops:
    """Writes one file per piece, and fails at one of the pieces."""

    at: int | None

    def __call__(self, folder: Path, number: int, numbers: range) -> Outcome:
        (folder / f"{number}.txt").write_text("half")
        if number == self.at:
            raise KeyboardInterrupt
        (folder / f"{number}.txt").write_text(f"{list(numbers)}")
        return Outcome(written=len(numbers), broken={f"x{number}": "why"})


def test_stopped_work_is_resumed(tmp_path):
    output, pieces = tmp_path / "out", cut(7, 2)
    assert pieces == [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]
    options = {"settings": {"seed": 1}, "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        work(output, Stops(2), pieces, **options)
    assert not output.exists()
    with pytest.raises(UserError, match=r"unfinished work with other settings \(seed: was 1, is 2\)"):
        work(output, Stops(None), pieces, settings={"seed": 2}, workers=1)
    done = []

    def counted(folder, number, numbers):
        done.append(number)
        return Stops(None)(folder, number, numbers)

    outcome = work(output, counted, pieces, **options)
    assert done == [2, 3] and outcome.written == 7 and sorted(outcome.broken) == ["x0", "x1", "x2", "x3"]
    work(tmp_path / "whole", Stops(None), pieces, **options)
    assert contents(output) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    def full(folder, number, numbers):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot be written to: No space left on device"):
        work(tmp_path / "out", full, cut(2, 1), settings={}, workers=1)


def test_a_killed_worker_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match="a worker process was killed"):
        work(tmp_path / "out", kill_this_process, cut(2, 1), settings={}, workers=2)


def kill_this_process(folder, number, numbers):
    os.kill(os.getpid(), signal.SIGKILL)
