"""The built package, installed into a new environment. Every command is run outside the checkout."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xpsr_jax.assets import DEMO
from xpsr_jax.cli.commands import COMMANDS
from xpsr_jax.config.files import config_names
from xpsr_jax.version import __version__

ROOT = Path(__file__).parents[2]
# Variables of the tests' environment that would lead back to the checkout, or simulate eight devices.
NOT_OURS = ("PYTHONPATH", "XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")
CAPTIONS = {"high": "Fruit in a bowl.", "low": "The image is blurry."}


def run(*words: object, cwd: Path, code: int = 0) -> str:
    """Runs a program, which must exit with this code; returns the output of both streams together."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def wheel(built) -> Path:
    [wheel] = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def xpsr(wheel, tmp_path_factory) -> Path:
    """The command in a new environment, in which the wheel was installed with the constraints."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    options = "--quiet", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", *options, wheel, cwd=folder)
    return folder / "bin" / "xpsr"


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Four small pictures with captions."""
    folder = tmp_path_factory.mktemp("photos")
    original = Image.open(DEMO / "original.png").convert("RGB")
    lines = []
    for index in range(4):
        original.crop((96 * index, 0, 96 * index + 96, 96)).save(folder / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png"} | CAPTIONS))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def contents(wheel: Path) -> dict[str, str]:
    """The name and digest of each file."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_sdist_and_the_checkout_make_the_same_wheel(built, wheel, tmp_path):
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    [direct] = tmp_path.glob("*.whl")
    assert direct.name == wheel.name == f"xpsr_jax-{__version__}-py3-none-any.whl"
    assert contents(direct) == contents(wheel)


def test_the_files_in_sdist_and_wheel(built, wheel):
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "xpsr_jax").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    configs = {f"xpsr_jax/configs/{name}.py" for name in config_names()}
    others = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert others == package | configs and "xpsr_jax/py.typed" in others
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in (".ci", ".github", "benchmarks", "docs", "notebooks", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    top = {"Makefile", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "constraints.txt", "mkdocs.yml"}
    top |= {".pre-commit-config.yaml", "train.py", "sample.py", "convert_weights.py"}
    assert names >= there | top


def test_the_command_can_be_called_in_three_ways(xpsr, tmp_path):
    shown = run(xpsr, "--help", cwd=tmp_path)
    assert shown == run(xpsr.with_name("python"), "-m", "xpsr_jax", "--help", cwd=tmp_path)
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert run(xpsr, "--version", cwd=tmp_path) == f"xpsr_jax {__version__}\n"
    where = run(xpsr.with_name("python"), "-c", "import xpsr_jax; print(xpsr_jax.__file__)", cwd=tmp_path)
    assert where.startswith(str(xpsr.parents[1]))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, xpsr, tmp_path):
    assert run(xpsr, name, "--help", cwd=tmp_path).startswith(f"usage: xpsr {name} ")


def test_restore_then_evaluate(xpsr, tmp_path):
    """Restores a reduced copy of the demo's photograph with the shipped model. Its original is the reference."""
    for name, folder in (("lr.png", "lr"), ("original.png", "original")):
        (tmp_path / folder).mkdir()
        picture = Image.open(DEMO / name)
        side = 32 * picture.width // Image.open(DEMO / "lr.png").width
        picture.resize((side, side * picture.height // picture.width), Image.Resampling.BICUBIC).save(
            tmp_path / folder / "photo.png"
        )
    words = "--output", "restored", "--missing-captions", "measured", "--steps", 20
    said = run(xpsr, "restore", "lr", *words, "--dry-run", cwd=tmp_path)
    assert "In all 2 evaluations" in said and not (tmp_path / "restored").exists()
    said = run(xpsr, "restore", "lr", *words, cwd=tmp_path)
    assert "1 of 1 images restored" in said
    sizes = {folder: Image.open(tmp_path / folder / "photo.png").size for folder in ("restored", "original")}
    Image.open(tmp_path / "original" / "photo.png").resize(sizes["restored"]).save(tmp_path / "original" / "photo.png")
    words = "--restored", "restored", "--reference", "original", "--metrics", "psnr", "ssim", "--json", "scores.json"
    assert "PSNR" in run(xpsr, "evaluate", *words, cwd=tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["mean"]["psnr"] > 15


def test_prepare_train_convert_restore(xpsr, photos, tmp_path):
    """Two steps of a config found by name, with the shipped autoencoder as the base, on records."""
    run(xpsr, "prepare", "records", photos, "--output", "stored", "--minimum-pixels", 1, cwd=tmp_path)
    shipped = run(
        xpsr.with_name("python"), "-c", "from xpsr_jax.assets import TINY_MODEL; print(TINY_MODEL)", cwd=tmp_path
    )
    fields = {
        "networks.base": shipped.strip(),
        "networks.first-stage": "none",  # it would take most of the step's time
        "images.folder": "stored",
        "steps": 2,
        "batch-size": 2,
        "data.crop-size": 64,
        "validation.every": 0,
        "run": "run",
    }
    words = [word for name, value in fields.items() for word in (f"--{name}", value)]
    said = run(xpsr, "train", "--config", "tiny", *words, "--images.exclude", cwd=tmp_path)
    assert "model: run/model" in said
    said = run(xpsr, "convert", "run", "--output", "converted", "--dtype", "float16", "--verify", cwd=tmp_path)
    assert "verified" in said
    Image.fromarray(np.asarray(Image.open(photos / "0.png"))[:24, :24]).save(tmp_path / "small.png")
    words = "--model", "converted", "--steps", 1, "--missing-captions", "empty", "--output", "restored"
    run(xpsr, "restore", "small.png", *words, cwd=tmp_path)
    assert Image.open(tmp_path / "restored" / "small.png").size == (96, 96)


def test_caption(xpsr, photos, tmp_path):
    run(xpsr, "caption", "measured", photos, "--output", "captions.jsonl", cwd=tmp_path)
    lines = (tmp_path / "captions.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all(json.loads(line)["low"] for line in lines)


def test_doctor_and_completion(xpsr, tmp_path):
    said = run(xpsr, "doctor", cwd=tmp_path)
    assert f"xpsr-jax {__version__} ({xpsr.parents[1]}" in said and "devices:    cpu 0: cpu" in said
    assert "app: lacks gradio" in said
    assert "restore" in run(xpsr, "completion", "bash", cwd=tmp_path)


def test_missing_requirements_are_reported(xpsr, tmp_path):
    assert run(xpsr, "app", cwd=tmp_path, code=1) == 'error: the page needs gradio: pip install "xpsr-jax[app]"\n'
    assert "Its authors keep them on a drive" in run(xpsr, "download", "xpsr", cwd=tmp_path, code=1)
    assert "nowhere is not a folder" in run(xpsr, "upload", "nowhere", "owner/name", cwd=tmp_path, code=1)
    assert "configs are ablations, few_step, sd21" in run(xpsr, "train", "--config", "no", cwd=tmp_path, code=1)
    assert shutil.which("xpsr", path=xpsr.parent)
