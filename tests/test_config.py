"""The project's configs, and errors for wrong ones."""

import dataclasses
import math
from pathlib import Path

import pytest

from xpsr_jax.config import PAPER, RELEASED, Config, Images, Loss, Mesh, Optimizer, Sampling, load_config
from xpsr_jax.data.config import BlurConfig, DataConfig, DegradationConfig, StageConfig
from xpsr_jax.errors import UserError
from xpsr_jax.training.resume import record

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FILE = """
from xpsr_jax.config import Config

VARIANTS = ("default",)

def config(variant):
    return Config(name="{name}")
"""
NAMES = "ablations, few_step, sd21, tiny, xpsr, xpsr_released"


def differences(a, b):
    """The fields that differ, by dotted name."""

    def flat(tree, prefix=""):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    a, b = (dict(flat(record(config, photographs=1))) for config in (a, b))
    return {name: (a[name], b[name]) for name in a if a[name] != b.get(name)}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.stem)
def test_every_variant_of_every_config_can_be_loaded(file):
    import importlib.util

    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.VARIANTS[0] == "default"
    names = [load_config(f"{file}:{variant}").name for variant in module.VARIANTS]
    assert len(set(names)) == len(names)  # each has its own run folder
    assert load_config(str(file)) == load_config(f"{file}:default")


def test_paper_and_released_code_differ_as_in_method_11():
    paper, released = (load_config(str(CONFIGS / f"{name}.py")) for name in ("xpsr", "xpsr_released"))
    found = differences(paper, released)
    sampling = {f.name: (getattr(PAPER, f.name), getattr(RELEASED, f.name)) for f in dataclasses.fields(Sampling)}
    sampling = {name: values for name, values in sampling.items() if values[0] != values[1]}
    assert found == {
        "name": ("xpsr", "xpsr_released"),
        "steps": (100_000, 432_624),
        "data.high_caption_from": ("lr", "hr"),
        "data.high_dropout": (0.0, 1.0),
        "data.clean_input_probability": (0.0, 0.1),
        "validation.every": (5000, 50_000),
        **{f"validation.sampling.{name}": values for name, values in sampling.items()},
        **{f"sampling.{name}": values for name, values in sampling.items()},
    }
    assert sampling.keys() >= {"steps", "guidance_scale", "guidance_form", "start", "positive_words", "negative_low"}


def test_the_released_training_has_the_values_of_method_6():
    config = load_config(str(CONFIGS / "xpsr_released.py"))
    optimizer, data = config.optimizer, config.data
    assert (config.batch_size, config.accumulation, config.loss.constraint) == (32, 1, 0.05)
    assert (optimizer.learning_rate, optimizer.b1, optimizer.b2, optimizer.epsilon) == (5e-5, 0.9, 0.999, 1e-8)
    assert (optimizer.weight_decay, optimizer.decayed, optimizer.clip) == (1e-2, ((".*", True),), 1.0)
    assert (optimizer.schedule, optimizer.warmup, optimizer.ema) == ("constant", 0, None)
    assert (data.crop_size, data.crop_scale, data.flip_probability) == (512, (1.0, 1.0), 0.5)
    assert (data.caption_dropout, data.low_dropout, data.negative_target_probability) == (0.0, 0.0, 0.0)
    assert data.degradation.sharpen and data.degradation.upscale == 4
    assert config.networks.from_scratch == ("controlnet",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/nothing.py", f"config file configs/nothing.py does not exist; configs with a name are {NAMES}"),
        ("nothing", f"unknown config 'nothing'; configs are {NAMES}, and your own files: --config FILE.py"),
        ("nothing:small", "unknown config 'nothing'"),
        (f"{ROOT}/README.md", "README.md is not a config file: its name does not end with .py"),
        (f"{CONFIGS}/tiny.py:huge", "has no variant 'huge'; it has default, autoencoder"),
        (__file__, "is not a config file"),
    ],
)
def test_wrong_configs_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        load_config(name)


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    """From any folder, even if it has a file or folder with that name."""
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "tiny:autoencoder", "few_step"):
        file, _, variant = name.partition(":")
        assert load_config(name) == load_config(f"{CONFIGS / file}.py:{variant or 'default'}")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny.py").write_text(FILE.format(name="my own"))
    assert load_config("tiny") == load_config(f"{CONFIGS}/tiny.py")
    assert load_config("tiny.py") == load_config("./tiny.py") == Config(name="my own")


def test_an_installed_package_contains_the_configs(tmp_path, monkeypatch):
    monkeypatch.setattr("xpsr_jax.config.files._PACKAGE", tmp_path / "xpsr_jax")
    (tmp_path / "xpsr_jax" / "configs").mkdir(parents=True)
    (tmp_path / "xpsr_jax" / "configs" / "other.py").write_text(FILE.format(name="other"))
    assert load_config("other") == Config(name="other")
    with pytest.raises(UserError, match=r"unknown config 'tiny'; configs are other, and your own files"):
        load_config("tiny")


@pytest.mark.parametrize("field", ["steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep"])
def test_counts_must_be_at_least_1(field):
    with pytest.raises(UserError, match=f"{field} must be at least 1, not 0"):
        Config(**{field: 0})


def test_microbatches_have_equal_sizes():
    with pytest.raises(UserError, match="batch_size=8 cannot be split into accumulation=3"):
        Config(batch_size=8, accumulation=3)


def test_the_patch_size_divides_the_crop_size():
    with pytest.raises(UserError, match=r"loss.patch=48 must divide data.crop_size=512"):
        Config(loss=Loss(patch=48))


def test_run_folder():
    assert Config(name="a").run_folder == Path("runs/a")
    assert Config(name="a", run=Path("elsewhere")).run_folder == Path("elsewhere")


@pytest.mark.parametrize(
    ("make", "fields", "problem"),
    [
        (Sampling, {"guidance_scale": math.nan}, "guidance_scale must be a finite number, not nan"),
        (Sampling, {"conditioning_scale": math.inf}, "conditioning_scale must be a finite number, not inf"),
        (Sampling, {"conditioning_scale": -1.0}, "conditioning_scale must be at least 0"),
        (Sampling, {"added_noise_level": -1}, "added_noise_level must be at least 0"),
        (Sampling, {"tile_overlap": -1}, "tile_overlap must be at least 0"),
        (Sampling, {"guidance_interval": (0.0, math.nan)}, r"guidance_interval\[1\] must be a finite number"),
        (Optimizer, {"learning_rate": 0.0}, "learning_rate must be above 0"),
        (Optimizer, {"learning_rate": math.nan}, "learning_rate must be a finite number"),
        (Loss, {"patch": 0}, "patch must be at least 1"),
        (Mesh, {"data": 0}, r"mesh\.data and mesh\.fsdp must be at least 1, or -1"),
        (Mesh, {"fsdp": -2}, "fsdp must be at least -1"),
        (Images, {"mixture": ((0.0, Path("a")),)}, r"mixture\[0\]\[0\] must be above 0"),
        (Images, {"mixture": ((math.nan, Path("a")),)}, r"mixture\[0\]\[0\] must be a finite number"),
        (DataConfig, {"flip_probability": 1.5}, "flip_probability must be from 0 to 1"),
        (DataConfig, {"workers": -1}, "workers must be at least 0"),
        (DataConfig, {"crop_scale": (0.0, 1.0)}, r"crop_scale\[0\] must be above 0"),
        (BlurConfig, {"sigma": (math.nan, 1.0)}, r"sigma\[0\] must be a finite number"),
        (BlurConfig, {"sizes": ()}, "sizes must have 1 to 100 entries"),
        (StageConfig, {"jpeg_quality": (0.0, 95.0)}, r"jpeg_quality\[0\] must be from 1 to 100"),
        (DegradationConfig, {"upscale": 0}, "upscale must be at least 1"),
        (Config, {"batch_size": -1}, "batch_size must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(make, fields, problem):
    with pytest.raises(UserError, match=problem):
        make(**fields)
