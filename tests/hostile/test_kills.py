"""Commands that are killed at random moments. All files under their final names are complete, and work can be resumed.

The result equals that of an uninterrupted command. SOAK_KILLS sets the number of kills (60). A third of them are for
trainings (tests/soak/test_kills.py). SOAK_SEED sets the moments.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile.pictures import pixels
from tests.hostile.test_every_command import check, check_folder
from tests.hostile.worker import Worker
from xpsr_jax.data.captions import read_caption_records
from xpsr_jax.images.reading import read_image

pytestmark = pytest.mark.soak
KILLS = int(os.environ.get("SOAK_KILLS", "60"))
SEED = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(10**6)))
PHOTOS = 24
Words = Callable[[Path, Path, Path], list[str | Path]]  # the command's words for photographs, an output and a model


def pictures_in(output: Path) -> dict[str, bytes]:
    """All pictures under their final names. They can be read, whenever the command was killed."""
    return {str(file.relative_to(output)): read_image(file).tobytes() for file in sorted(output.rglob("*.png"))}


def captions_in(output: Path) -> dict[str, str]:
    """The captions in complete lines. The next command removes an incomplete last line."""
    file = output / "c.jsonl"
    if not file.exists():
        return {}
    whole = file.read_bytes().rpartition(b"\n")[0]
    records = [json.loads(line) for line in whole.splitlines()]
    return {record["image"]: record["low"] for record in records}


def all_or_nothing(output: Path) -> dict[str, bytes]:
    """The files of a folder that appears when it is complete, except prepared.json, which has times."""
    files = (file for file in sorted(output.rglob("*")) if file.is_file()) if output.exists() else ()
    return {str(file.relative_to(output)): file.read_bytes() for file in files if file.name != "prepared.json"}


COMMANDS: dict[str, tuple[str, Words, Callable[[Path], dict], float]] = {
    "sample": (
        "sample",
        lambda photos, output, model: [
            *(photos, "--output", output, "--model", model, "--missing-captions", "empty"),
            *("--steps", "1", "--batch-size", "2"),
        ],
        pictures_in,
        0.4,
    ),
    "caption": (
        "caption",
        lambda photos, output, model: ["measured", photos, "--output", output / "c.jsonl", "--workers", "1"],
        captions_in,
        0.3,
    ),
    "prepare_data": (
        "prepare",
        lambda photos, output, model: [
            *("pairs", photos, "--output", output, "--missing-captions", "empty", "--minimum-pixels", "1"),
            *("--crop-size", "32", "--rounds", "3", "--workers", "1"),
        ],
        all_or_nothing,
        0.2,
    ),
    "convert": ("convert", lambda photos, output, model: [model, "--output", output], all_or_nothing, 0.1),
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for i in range(PHOTOS):
        Image.fromarray(np.kron(pixels(i, (8, 8, 3)), np.ones((4, 4, 1), np.uint8))).save(folder / f"{i}.png")
    return folder


def finish(command: str, words: list[str | Path], worker: Worker, folder: Path, seconds: float = 300):
    ended = worker.run(COMMANDS[command][0], words, cwd=folder, seconds=seconds)
    if ended.code != -9:
        check(ended, codes=(0,))
    return ended


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_killed_at_random_moments_give_the_same_result(command, worker, model, many, tmp_path):
    _, words, result, share = COMMANDS[command]
    kills = max(1, round(share * KILLS * 2 / 3))
    # The folders have the same name, because a model card contains it.
    whole, timed, output = tmp_path / "whole" / "out", tmp_path / "timed" / "out", tmp_path / "out"
    whole.parent.mkdir()
    timed.parent.mkdir()
    finish(command, words(many, whole, model), worker, tmp_path)
    # Measure a run with compiled programs, because otherwise most runs would end before the kill.
    seconds = finish(command, words(many, timed, model), worker, tmp_path).seconds
    expected, rng, killed, runs = result(whole), random.Random(f"{SEED}{command}"), 0, 0
    assert expected
    while killed < kills:
        before = result(output)
        ended = finish(command, words(many, output, model), worker, tmp_path, seconds=rng.uniform(0, 1.1 * seconds))
        now = result(output)
        assert all(expected[name] == content for name, content in now.items())
        assert before.keys() <= now.keys()  # finished work is not lost
        if ended.code == -9:
            killed += 1
            if now != expected:
                continue
        runs += 1
        assert now == expected
        shutil.rmtree(output)
    finish(command, words(many, output, model), worker, tmp_path)
    assert result(output) == expected
    check_folder(tmp_path)
    if command == "caption":
        assert len(read_caption_records(output / "c.jsonl")) == PHOTOS
    print(f"{command}, seed {SEED}: killed {killed} times, {runs + 1} runs, all with the same result")
