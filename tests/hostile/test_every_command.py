"""Every command with hostile inputs: the exit code is right, each error is one line, and no file is incomplete.

The corpus is made when it is needed, from fixed seeds: `pictures`, `texts`, `models`. `make test` uses a sample of it,
`make soak` all of it.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.hostile.models import CHANGES, FILES, READ, component, make_model
from tests.hostile.pictures import ESCAPE, PICTURES, make_pictures
from tests.hostile.texts import CAPTIONS
from tests.hostile.worker import MEMORY, ROOT, Ended, Worker
from xpsr_jax.data.captions import read_caption_records
from xpsr_jax.errors import printable

soak = pytest.mark.soak
Words = Callable[[Path, Path, Path], list[str | Path]]  # the command's words for a corpus, an output and a model

# Names of unfinished files. A failed command must not leave any.
UNFINISHED = ("*.partial", "*.partial/*", "*.tmp", "*.old", "*.lock", "*.orbax-checkpoint-tmp*")


def sample_of(corpus: Iterable[str], every: int) -> list[str]:
    return list(corpus)[::every]


def check(ended: Ended, *, codes: tuple[int, ...] = (0, 1), lines: int | None = None) -> None:
    """Checks the conditions that hold for all inputs."""
    said = ended.out + ended.err
    assert ended.code in codes, (ended.code, ended.err[-3000:])
    assert "Traceback" not in said, said[-3000:]
    assert ESCAPE not in said and "\x1b[0" not in said and "\x07" not in said
    assert ended.bytes < MEMORY
    if lines is not None:
        assert len(ended.err.strip().splitlines()) <= lines, ended.err[-3000:]


def check_folder(folder: Path) -> None:
    left = [path for pattern in UNFINISHED for path in folder.rglob(pattern)]
    assert not left, left


# For each command: its words, and a function for the pictures that have a result.
MANY: dict[str, tuple[str, Words, Callable[[Path, list[str]], set[str]]]] = {
    "sample": (
        "sample",
        lambda photos, output, model: [photos, "--model", model, "--missing-captions", "measured", "--steps", "1"],
        lambda output, names: {name for name in names if (output / Path(name).with_suffix(".png")).is_file()},
    ),
    "caption": (
        "caption",
        lambda photos, output, model: ["measured", photos, "--workers", "2"],
        lambda output, names: set(read_caption_records(output)),
    ),
    "prepare_data records": (
        "prepare",
        lambda photos, output, model: ["records", photos, "--missing-captions", "empty", "--minimum-pixels", "1"],
        lambda output, names: searched(names) - broken(output),
    ),
    "prepare_data pairs": (
        "prepare",
        lambda photos, output, model: [
            *("pairs", photos, "--missing-captions", "empty", "--minimum-pixels", "1", "--crop-size", "32"),
            *("--rounds", "1"),
        ],
        lambda output, names: searched(names) - broken(output),
    ),
    "evaluate": (
        "evaluate",
        lambda photos, output, model: ["--restored", photos, "--reference", photos, "--metrics", "psnr"],
        lambda output, names: set(json.loads((output / "scores.json").read_text())["images"]),
    ),
}


def searched(names: Iterable[str]) -> set[str]:
    """The names that a search of a folder finds. It ignores raw files of cameras."""
    return {name for name in names if not name.endswith(".dng")}


def broken(output: Path) -> set[str]:
    return set(json.loads((output / "prepared.json").read_text())["broken"])


def written_forms(name: str) -> tuple[str, str]:
    """A file's name as written on a terminal, and in JSON."""
    return printable(name), json.dumps(name)[1:-1]


def feed_pictures(command: str, names: list[str], worker: Worker, model: Path, folder: Path) -> None:
    photos, output = folder / "photos", folder / "out"
    make_pictures(photos, names)
    main, words, read_by = MANY[command]
    options = ["--output", output / "c.jsonl" if main == "caption" else output, "--on-error", "skip"]
    options += ["--workers", "1"] if main == "prepare" else []
    ended = worker.run(main, [*words(photos, output, model), *options], cwd=folder, seconds=600)
    print(f"{command}: {len(names)} pictures, {ended.seconds:.1f} s, {ended.bytes / 2**20:.0f} MiB")
    check(ended, codes=(1,))
    check_folder(folder)
    read = read_by(output / "c.jsonl" if main == "caption" else output, names)
    wrong = {name for name in names if PICTURES[name][1] is not None and PICTURES[name][1] != (name in read)}
    if command == "evaluate":  # some readable pictures are too small for a metric, but are still named by the command
        wrong = {name for name in wrong if PICTURES[name][1] is False}
    assert not {ascii(name) for name in wrong}, ended.err[-3000:]
    report = ended.err + ended.out
    for extra in folder.rglob("*"):
        if extra.suffix in (".json", ".txt") and extra.is_file() and "photos" not in extra.parts:
            report += extra.read_text(encoding="utf-8", errors="replace")
    if "a-cameras-dng.dng" in names:  # the search of a folder ignores it; if it is named directly, it is refused
        assert "1 file ignored: .dng (1)" in report
        report += "a-cameras-dng.dng"
    unnamed = {name for name in set(names) - read if not any(each in report for each in written_forms(name))}
    assert not unnamed, ended.err[-3000:]
    assert not list(folder.rglob("hacked"))


@pytest.mark.parametrize("command", MANY)
def test_some_pictures(command, worker, model, tmp_path):
    feed_pictures(command, sample_of(PICTURES, 12), worker, model, tmp_path)


@soak
@pytest.mark.parametrize("command", MANY)
def test_all_pictures(command, worker, model, tmp_path):
    feed_pictures(command, list(PICTURES), worker, model, tmp_path)


@soak
def test_training_on_all_pictures(worker, tmp_path):
    """Every broken picture is skipped and named. The run does not end early."""
    photos, run = tmp_path / "photos", tmp_path / "run"
    make_pictures(photos)
    words = ["--config", ROOT / "tests" / "training" / "tiny.py", "--images.folder", photos, "--run", run]
    words += ["--images.missing-captions", "empty", "--images.on-error", "skip", "--steps", len(PICTURES) // 8]
    ended = worker.run("train", [*words, "--checkpoint-every", "100"], cwd=tmp_path, seconds=600)
    print(f"train: {len(PICTURES)} pictures, {ended.seconds:.1f} s, {ended.bytes / 2**20:.0f} MiB")
    check(ended, codes=(0,))
    check_folder(run)
    assert (run / "model" / "unet" / "config.json").is_file()
    report = ended.err + ended.out + (run / "log.txt").read_text()
    refused = [name for name, (_, right) in PICTURES.items() if right is False and not name.endswith(".dng")]
    named = [name for name in refused if printable(name) in report]
    assert len(named) > 0.5 * len(refused)  # the run does not reach all pictures of the epoch


# Commands that read captions, and their words for a captions file, photographs and an output.
READ_CAPTIONS: dict[str, tuple[str, Words]] = {
    "caption merge": ("caption", lambda file, photos, out: ["merge", file, "--output", out / "m.jsonl"]),
    "caption report": (
        "caption",
        lambda file, photos, out: ["report", file, "--images", photos, "--output", out / "page.html"],
    ),
    "caption --rest": (
        "caption",
        lambda file, photos, out: ["measured", photos, "--rest", file, "--output", out / "c.jsonl"],
    ),
    "prepare_data": (
        "prepare",
        lambda file, photos, out: [
            *("records", photos, "--captions", file, "--output", out / "records"),
            *("--minimum-pixels", "1", "--workers", "1"),
        ],
    ),
    "train": (
        "train",
        lambda file, photos, out: [
            *("--config", ROOT / "tests" / "training" / "tiny.py", "--images.folder", photos),
            *("--images.captions", file, "--run", out / "run", "--steps", "1"),
        ],
    ),
}


def feed_captions(name: str, worker: Worker, photos: Path, folder: Path) -> None:
    make, right = CAPTIONS[name]
    make(folder / name)
    for command, (main, words) in READ_CAPTIONS.items():
        if main == "train" and right is not False:  # the training would start
            continue
        output = folder / command
        output.mkdir()
        ended = worker.run(main, words(folder / name, photos, output), cwd=folder)
        check(ended, codes={True: (0,), False: (1,), None: (0, 1)}[right], lines=12)
        check_folder(output)
        if ended.code:
            assert name in ended.err and (main == "train" or not any(output.iterdir())), (command, ended.err)


@pytest.mark.parametrize("name", sample_of(CAPTIONS, 9))
def test_some_captions(name, worker, photos, tmp_path):
    feed_captions(name, worker, photos, tmp_path)


@soak
@pytest.mark.parametrize("name", CAPTIONS)
def test_all_captions(name, worker, photos, tmp_path):
    feed_captions(name, worker, photos, tmp_path)


def convert(source: Path, worker: Worker, folder: Path) -> Ended:
    ended = worker.run("convert", [source, "--output", folder / "out"], cwd=folder)
    check(ended, lines=12)
    check_folder(folder)
    assert not (folder / "hacked").exists()
    if ended.code:
        assert not (folder / "out").exists()
    return ended


def feed_model(name: str, worker: Worker, model: Path, folder: Path) -> None:
    """The command gets only the hostile part of the model."""
    make_model(model, folder / name, CHANGES[name], part=component(name))
    ended = convert(folder / name, worker, folder)
    assert name in READ or ended.code == 1, ended.out


def feed_file(name: str, worker: Worker, folder: Path) -> None:
    FILES[name](folder / name)
    assert convert(folder / name, worker, folder).code == 1


@pytest.mark.parametrize("name", sample_of(CHANGES, 41))
def test_some_model_folders(name, worker, model, tmp_path):
    feed_model(name, worker, model, tmp_path)


@pytest.mark.parametrize("name", sample_of(FILES, 13))
def test_some_files_of_weights(name, worker, tmp_path):
    feed_file(name, worker, tmp_path)


@soak
@pytest.mark.parametrize("name", CHANGES)
def test_all_model_folders(name, worker, model, tmp_path):
    feed_model(name, worker, model, tmp_path)


@soak
@pytest.mark.parametrize("name", FILES)
def test_all_files_of_weights(name, worker, tmp_path):
    feed_file(name, worker, tmp_path)


@soak
@pytest.mark.parametrize("name", sample_of(CHANGES, 7))
def test_models_to_sample_with(name, worker, model, photos, tmp_path):
    make_model(model, tmp_path / name, CHANGES[name])
    output = tmp_path / "out"
    words = [photos, "--output", output, "--model", tmp_path / name, "--missing-captions", "empty", "--steps", "1"]
    ended = worker.run("sample", words, cwd=tmp_path, seconds=120)
    check(ended, lines=12)
    assert name in READ or ended.code == 1, ended.out
    assert ended.code == 0 or not list(output.rglob("*.png"))
    check_folder(tmp_path)


# Only changes in parts that a training reads from its base, and that are refused. With others, the training would
# start.
_BASES = [name for name in CHANGES if name not in READ and component(name) not in ("", "controlnet", "scheduler")]


@soak
@pytest.mark.parametrize("name", sample_of(_BASES, 9))
def test_models_to_train_on(name, worker, model, photos, tmp_path):
    make_model(model, tmp_path / name, CHANGES[name])
    words = ["--config", ROOT / "configs" / "xpsr.py", "--networks.base", tmp_path / name, "--images.folder", photos]
    words += ["--run", tmp_path / "run", "--images.missing-captions", "empty", "--steps", "1"]
    ended = worker.run("train", words, cwd=tmp_path, seconds=120)
    check(ended, codes=(1,), lines=12)


def test_the_corpus_is_large_enough():
    assert len(PICTURES) + len(CAPTIONS) + len(CHANGES) + len(FILES) >= 150
    assert os.sep not in "".join((*PICTURES, *CAPTIONS, *CHANGES, *FILES))
