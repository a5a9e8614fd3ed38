import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.inference.tiny_model import tiny_model
from tests.weights.conftest import random_tensors
from tests.weights.ldm import single_file
from tests.weights.test_single_file import AUTOENCODER_CONFIG, NETWORKS, TEXT_1, UNET_1
from xpsr_jax.assets import TINY_MODEL
from xpsr_jax.cli import restore as sample
from xpsr_jax.config import PAPER, RELEASED, SAMPLING_PRESETS, Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.distributed import part_of
from xpsr_jax.images.listing import list_inputs
from xpsr_jax.images.reading import read_image
from xpsr_jax.inference import job, restore
from xpsr_jax.inference.input_captions import find_captions
from xpsr_jax.inference.restore import not_finite
from xpsr_jax.locks import locked_folder
from xpsr_jax.weights.convert import convert
from xpsr_jax.weights.model_folder import save, write_index
from xpsr_jax.weights.sampling_defaults import load_defaults
from xpsr_jax.weights.sources import open_source

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(tiny_model(), folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder of two photographs, one in a subfolder, and their captions."""
    folder = tmp_path / "photos"
    for name in ("b.png", "a/c.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)
    lines = [json.dumps({"image": name, "high": "a house", "low": "blurry"}) for name in ("b.png", "a/c.jpg")]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def outputs(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_second_job_for_the_same_folder_is_refused(photos, tmp_path, capsys):
    """It is refused before any model is loaded. Processes of one job may share the folder."""
    output, command = tmp_path / "out", [str(photos), "--output", str(tmp_path / "out"), "--missing-captions", "empty"]
    output.mkdir()
    with locked_folder(output):
        assert sample.main(command) == 1
    assert f"{output} is being written by another process" in capsys.readouterr().err
    with locked_folder(output, shared=True):
        # The next error is about the model.
        command += ["--processes", "2", "--process", "0", "--model", str(tmp_path / "none")]
        assert sample.main(command) == 1
    assert "none does not exist" in capsys.readouterr().err


def test_seeds_have_64_bits(photos, tmp_path, capsys):
    for seed in (2**64, -(2**63) - 1):
        command = [str(photos), "--output", str(tmp_path / "out"), "--missing-captions", "empty", "--seed", str(seed)]
        assert sample.main(command) == 1
        assert f"seed must be from -9223372036854775808 to 18446744073709551615, not {seed}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_is_restored(model_folder, photos, tmp_path):
    """Normal use: a separate process, all devices, and a folder with a subfolder and captions."""
    output = tmp_path / "restored"
    command = [sys.executable, ROOT / "sample.py", photos, "--output", output, "--model", model_folder, "--captions"]
    run = subprocess.run(
        [*command, photos / "captions.jsonl", "--compare", tmp_path / "compared" / "page.html"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    assert outputs(output) == ["a/c.png", "b.png", "restored.jsonl"]
    assert all(read_image(output / name).shape == (32, 32, 3) for name in ("a/c.png", "b.png"))
    page = (tmp_path / "compared" / "page.html").read_text(encoding="utf-8")
    assert page.count("8 × 8 → 32 × 32") == 2 and "a/c.jpg" in page
    assert "It is a test's." in run.stdout and "2 of 2 images restored" in run.stdout
    assert "Traceback" not in run.stderr


def restored(photos, output, *model):
    argv = [photos / "b.png", "--output", output, "--captions", photos / "captions.jsonl", "--model", *model]
    assert sample.main([str(argument) for argument in argv]) == 0
    return read_image(output / "b.png")


@pytest.mark.soak
def test_an_orbax_model(model_folder, photos, tmp_path):
    convert([open_source(model_folder)], tmp_path / "orbax", to="orbax")
    expected = restored(photos, tmp_path / "from_torch", model_folder)
    np.testing.assert_array_equal(restored(photos, tmp_path / "from_orbax", tmp_path / "orbax"), expected)


@pytest.mark.soak
def test_a_single_file_and_the_released_layout(photos, tmp_path):
    """The single file of Stable Diffusion has all components except XPSR's networks."""
    save(tiny_model(AUTOENCODER_CONFIG, dataclasses.replace(TEXT_1, vocab_size=49408)), tmp_path / "whole")
    for name in ("unet", "controlnet"):
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "checkpoint-1" / name)
    vae, text = (load_file(next((tmp_path / "whole" / n).glob("*.safetensors"))) for n in ("vae", "text_encoder"))
    stock = random_tensors(NETWORKS["unet"], UNET_1)
    file = single_file(stock, vae, text, version=1, layers=2, attended_up={1}, levels=2)
    save_file({key: np.ascontiguousarray(array) for key, array in file.items()}, tmp_path / "sd.safetensors")
    shutil.copyfile(tmp_path / "whole" / "model_index.json", tmp_path / "checkpoint-1" / "model_index.json")
    expected = restored(photos, tmp_path / "from_whole", tmp_path / "whole")
    from_parts = restored(photos, tmp_path / "from_parts", tmp_path / "sd.safetensors", tmp_path / "checkpoint-1")
    np.testing.assert_array_equal(from_parts, expected)


def one_line(capsys, argv, *, code=1):
    """Runs the command, which must fail with one line on stderr, and returns that line."""
    assert sample.main([str(argument) for argument in argv]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def arguments_of(*words):
    return sample.read_arguments(["photo.png", "--output", "out", *map(str, words)])


def chosen(folder, sampling, *words):
    """The settings from a command line, with a model that has its own settings."""
    write_index(folder, sampling, "")
    return arguments_of("--model", folder, *words).sampling.chosen()


def test_the_command_line_overrides_the_preset(tmp_path):
    sampling = chosen(tmp_path, Sampling(steps=3), "--preset", "released", "--steps", 7, "--positive", "")
    assert sampling == dataclasses.replace(RELEASED, steps=7, positive_words="")
    assert chosen(tmp_path, Sampling(steps=3)) == Sampling(steps=3)
    # None overrides a preset's words too.
    assert chosen(tmp_path, PAPER, "--preset=released", "--negative-low", "None").negative_low is None
    assert arguments_of().sampling.chosen() == load_defaults([TINY_MODEL])[0]


def test_options_have_short_names_and_the_names_of_their_fields(tmp_path):
    short = ["--positive", "a", "--negative", "b", "--tile", 64, "--vae-tile", 48, "--karras", "True"]
    long = ["--positive-words", "a", "--negative-high", "b", "--tile-size", 64, "--vae-tile-size", 48]
    other = ["--sampler", "euler", "--guidance-interval", 0.1, "0.5"]
    expected = Sampling(
        sampler="euler",
        karras=True,
        guidance_interval=(0.1, 0.5),
        positive_words="a",
        negative_high="b",
        tile_size=64,
        vae_tile_size=48,
    )
    assert chosen(tmp_path, PAPER, *short, *other) == expected
    assert chosen(tmp_path, PAPER, *long, *other, "--karras", "True") == expected


@pytest.mark.parametrize("preset", ["paper", "released", "few_step"])
def test_a_preset_keeps_the_size_that_the_model_was_trained_with(preset, tmp_path):
    model = Sampling(steps=3, guidance_scale=0.0, process_size=128)
    expected = dataclasses.replace(SAMPLING_PRESETS[preset], process_size=128)
    assert chosen(tmp_path, model, "--preset", preset) == expected


def test_another_sampler_does_not_get_the_default_sampler_s_settings(tmp_path):
    defaults = Sampling(sampler="ddim", eta=1.0, guidance_interval=(0.0, 0.5))
    words = ["--sampler", "unipc", "--karras", "True", "--guidance-interval", 0.2, 0.8]
    expected = Sampling(sampler="unipc", karras=True, guidance_interval=(0.2, 0.8))
    assert chosen(tmp_path, defaults, *words) == expected
    same = chosen(tmp_path, defaults, "--sampler", "ddim", "--strength", 0.5)
    assert same == dataclasses.replace(defaults, strength=0.5)


def test_help_shows_the_defaults_of_the_chosen_model_and_preset(capsys, tmp_path):
    write_index(tmp_path, Sampling(steps=37, negative_high="murky"), "")
    for words, expected in [
        (["--model", str(tmp_path)], ["(default: 37)", "(default: murky)"]),
        (["--model", str(tmp_path), "--preset", "released"], ["(default: 20)", "(default: released)"]),
    ]:
        with pytest.raises(SystemExit) as stopped:
            sample.main([*words, "--help"])
        text = re.sub(r"[│\s]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))
        assert stopped.value.code == 0 and all(each in text for each in expected), text


def test_captions_are_found_and_can_be_turned_off(photos):
    inputs = list_inputs([photos])
    file = photos / "captions.jsonl"
    assert find_captions(inputs, file) == [Caption("a house", "blurry")] * 2
    tasks = sample.make_tasks(inputs, [Path("a"), Path("b")], arguments_of("--captions", file, "--no-high-captions"))
    assert [task.caption for task in tasks] == [Caption("", "blurry")] * 2
    # If the caption file is elsewhere, images are found by their path below an input folder.
    moved = photos.parent / "elsewhere.jsonl"
    moved.write_text(file.read_text())
    assert find_captions(inputs, moved) == [Caption("a house", "blurry")] * 2
    # A link has its own captions, otherwise those of the image.
    (photos / "link.png").symlink_to("b.png")
    link = list_inputs([photos / "link.png"])
    assert find_captions(link, file) == [Caption("a house", "blurry")]
    with file.open("a") as opened:
        opened.write("\n" + json.dumps({"image": "link.png", "high": "a hut", "low": "noisy"}))
    assert find_captions(link, file) == [Caption("a hut", "noisy")]


def test_missing_input(capsys, tmp_path):
    assert "no such file" in one_line(capsys, [tmp_path / "nowhere.png", "--output", tmp_path / "out"])


def test_empty_folder(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no image in this folder" in one_line(capsys, [tmp_path / "empty", "--output", tmp_path / "out"])


def test_missing_caption(capsys, photos, tmp_path):
    argv = [photos, "--output", tmp_path / "out", "--captions", tmp_path / "some.jsonl"]
    (tmp_path / "some.jsonl").write_text(json.dumps({"image": "b.png", "high": "a house", "low": "blurry"}))
    assert f"no captions for {photos / 'a' / 'c.jpg'} in" in one_line(capsys, argv)
    assert f"{photos / 'a' / 'c.jpg'} and 1 more (no --captions FILE)" in one_line(capsys, argv[:3])
    assert not (tmp_path / "out").exists()


def test_broken_captions_file(capsys, photos, tmp_path):
    (tmp_path / "broken.jsonl").write_text("{")
    line = one_line(capsys, [photos, "--output", tmp_path / "out", "--captions", tmp_path / "broken.jsonl"])
    assert "broken.jsonl, line 1" in line


def test_two_inputs_with_the_same_output(capsys, photos, tmp_path):
    (photos / "b.bmp").write_bytes((photos / "b.png").read_bytes())
    assert "would both become" in one_line(capsys, [photos, "--output", tmp_path / "out"])


def test_an_output_that_exists_or_is_an_input(capsys, photos, tmp_path):
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "c.png").write_text("mine")
    argv = [photos, "--output", tmp_path / "out", "--missing-captions", "empty"]
    assert "exists already, and was not made from this input (restored.jsonl has no line for it)" in one_line(
        capsys, argv
    )
    assert (tmp_path / "out" / "a" / "c.png").read_text() == "mine"
    line = one_line(capsys, [photos / "b.png", "--output", photos, "--missing-captions", "empty", "--overwrite"])
    assert "is an input and would be overwritten" in line
    assert "results would be among the inputs" in one_line(capsys, [photos, "--output", photos])


@pytest.mark.more
def test_interrupted_work_is_resumed(capsys, photos, tmp_path, monkeypatch, model_folder):
    """Interrupted during the second image, the same command makes only that one. Other settings are refused."""
    output = tmp_path / "out"
    argv = [photos, "--output", output, "--model", model_folder, "--captions", photos / "captions.jsonl"]
    argv = [str(argument) for argument in argv]
    write, written = job.write_restored, []

    def killed(path, *args, **options):
        written.append(path.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        write(path, *args, **options)

    monkeypatch.setattr(job, "write_restored", killed)
    assert sample.main(argv) == 130
    first = {name: (output / name).read_bytes() for name in outputs(output)}
    assert len(first) == 2 and "restored.jsonl" in first
    assert sample.main(argv) == 0
    assert "1 of 2 images are already restored." in capsys.readouterr().out
    assert written == ["c.png", "b.png", "b.png"]
    assert outputs(output) == ["a/c.png", "b.png", "restored.jsonl"]
    assert (output / "a" / "c.png").read_bytes() == first["a/c.png"]
    lines = [json.loads(line) for line in (output / "restored.jsonl").read_text().splitlines()]
    assert [line["output"] for line in lines] == ["a/c.png", "b.png"]
    assert lines[0]["settings"]["high"] == "a house" and lines[0]["settings"]["steps"] == 2 and lines[0]["seconds"] > 0

    assert "made with other settings (seed: was 0, is 3)" in one_line(capsys, [*argv, "--seed", "3"])
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes() + b"changed")
    error = one_line(capsys, argv)
    assert (
        f"b.png exists already, and was not made from this input ({photos / 'b.png'} has changed since): choose"
        in error
    )
    assert sample.main([*argv, "--seed", "3", "--overwrite"]) == 0
    assert (output / "a" / "c.png").read_bytes() != first["a/c.png"]


def test_transparency_and_format(photos, tmp_path, model_folder):
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255
    rgb = np.asarray(Image.open(photos / "b.png"))
    Image.fromarray(np.dstack([rgb, alpha])).save(photos / "b.png")
    argv = [photos / "b.png", "--output", tmp_path / "out", "--model", model_folder, "--missing-captions", "empty"]
    assert sample.main([str(argument) for argument in [*argv, "--format", "webp"]]) == 0
    with Image.open(tmp_path / "out" / "b.webp") as image:
        assert image.size == (32, 32) and image.mode == "RGBA"
        restored = np.asarray(image.getchannel("A"))
    assert (restored[:, :12] == 0).all() and (restored[:, 20:] == 255).all()


def test_pictures_that_would_become_too_large(capsys, photos, tmp_path, model_folder):
    Image.new("RGB", (1, 900)).save(photos / "thin.png")
    argv = [photos / "thin.png", "--output", tmp_path / "out", "--missing-captions", "empty", "--model", model_folder]
    error = one_line(capsys, [*argv, "--max-megapixels", 0.5])
    assert "thin.png: 1 x 900 pixels would be restored at 32 x 28800, which is more than 0.5 million" in error


def test_invalid_limits(capsys, photos, tmp_path):
    """They are refused before a model is loaded: here it does not exist."""
    argv = [photos, "--output", tmp_path / "out", "--model", tmp_path / "nowhere", "--missing-captions", "measured"]
    for value in ("nan", "0", "-1"):
        assert "--max-megapixels must be above 0" in one_line(capsys, [*argv, "--max-megapixels", value])
    assert "nowhere" in one_line(capsys, [*argv, "--max-megapixels", "inf"])


def test_unwritable_output(capsys, photos, tmp_path):
    (tmp_path / "file").write_text("")
    line = one_line(capsys, [photos, "--output", tmp_path / "file" / "out", "--missing-captions", "empty"])
    assert "cannot write into this folder" in line


def test_wrong_model_folder(capsys, photos, tmp_path):
    argv = [photos, "--output", tmp_path / "out", "--missing-captions", "empty", "--model"]
    assert "unet/" in one_line(capsys, [*argv, photos])
    assert "nowhere" in one_line(capsys, [*argv, tmp_path / "nowhere"])


def test_impossible_settings(capsys, photos, tmp_path, model_folder):
    argv = [photos, "--output", tmp_path / "out", "--missing-captions", "empty", "--model", model_folder]
    assert "--batch-size" in one_line(capsys, [*argv, "--batch-size", 0])
    assert "number of steps" in one_line(capsys, [*argv, "--steps", 5000])
    assert "eta is a setting of" in one_line(capsys, [*argv, "--eta", 0.5])
    assert "guidance_interval must be" in one_line(capsys, [*argv, "--guidance-interval", 0.8, 0.2])
    assert "tiles of 20 latent cells cannot overlap by 16" in one_line(capsys, [*argv, "--tile", 20])
    assert "vae_tile_size must be at least 32" in one_line(capsys, [*argv, "--vae-tile", 20])
    assert "--process must be from 0 to" in one_line(capsys, [*argv, "--processes", 2, "--process", 2])
    assert "cannot be used with --coordinator" in one_line(capsys, [*argv, "--distributed", "off", "--processes", 2])


def test_process_numbers_from_arguments():
    """The results of several processes are tested in tests/soak/test_sampling.py."""
    assert part_of(processes=3, process=1) == (1, 3)
    assert part_of("off") == (0, 1)
    assert part_of() == (0, 1)


def test_weights_that_are_not_finite(capsys, photos, tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_out.bias": np.full(4, np.nan, np.float32)}, file)
    argv = [photos, "--output", tmp_path / "out", "--missing-captions", "empty", "--model", tmp_path / "model"]
    assert sample.main([str(argument) for argument in argv]) == 1
    error = capsys.readouterr().err  # one line for each such tensor
    assert "conv_out.bias" in error and "Traceback" not in error


def test_a_broken_image_stops_or_is_skipped(capsys, photos, tmp_path, model_folder):
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(photos / "d.jpg")
    (photos / "d.jpg").write_bytes((photos / "d.jpg").read_bytes()[:3000])  # its header is complete
    (photos / "e.png").write_text("no picture")
    argv = [photos, "--output", tmp_path / "out", "--missing-captions", "empty", "--model", model_folder]
    assert "e.png: not an image" in one_line(capsys, argv)
    assert not (tmp_path / "out").exists() or not outputs(tmp_path / "out")

    assert sample.main([*map(str, argv), "--on-error", "skip"]) == 1
    captured = capsys.readouterr()
    assert outputs(tmp_path / "out") == ["a/c.png", "b.png", "restored.jsonl"]
    assert "2 of 4 images restored" in captured.out and "2 skipped" in captured.out
    assert "d.jpg: damaged" in captured.err and "e.png: not an image" in captured.err


def test_networks_that_return_nan(capsys, photos, tmp_path, monkeypatch, model_folder):
    monkeypatch.setattr(restore, "Restorer", _NotFinite)
    argv = [photos / "b.png", "--output", tmp_path / "out", "--missing-captions", "empty", "--model", model_folder]
    assert not_finite(str(photos / "b.png")) in one_line(capsys, argv)
    assert not outputs(tmp_path / "out")


class _NotFinite(restore.Restorer):
    def __call__(self, images, captions, **_):
        return [None] * len(images)
