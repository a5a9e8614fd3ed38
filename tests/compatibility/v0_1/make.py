"""Makes the other files of this folder with version 0.1 of xpsr_jax: python make.py CHECKOUT

CHECKOUT is the repository at the commit that README.md names. It documents how the files were made. It does not have to
run with later versions: what they need is that they read these files.
"""

# What JAX is told, and where the package is, comes before the imports.
# ruff: noqa: E402

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XPSR_JAX_CACHE"] = ""

import dataclasses
import json
import runpy
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

CHECKOUT = Path(sys.argv[1]).resolve()
HERE = Path(__file__).parent
sys.path.insert(0, str(CHECKOUT))

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import xpsr_jax
from xpsr_jax.config import load_config
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.models.autoencoder import Autoencoder
from xpsr_jax.models.text_encoder import TextEncoder
from xpsr_jax.models.unet import UNet
from xpsr_jax.training import log
from xpsr_jax.weights import model_folder

PREPARE = ("--workers", "1", "--minimum-pixels", "1000")


def command(name: str, *arguments: object, code: int = 0) -> None:
    """Runs `python name arguments`; a name without .py is a module of the package."""
    sys.argv = [name, *map(str, arguments)]
    try:
        if name.endswith(".py"):
            runpy.run_path(str(CHECKOUT / name), run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        found = 0
    except SystemExit as stopped:
        found = stopped.code or 0
    assert found == code, (name, arguments, found)


def make_photos() -> None:
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(4):
        coarse = rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)
        cv2.imwrite(f"photos/{i}.png", cv2.resize(coarse, (48, 40), interpolation=cv2.INTER_CUBIC))
        lines.append({"image": f"{i}.png", "high": f"Picture {i}, in colours.", "low": "The picture is clear."})
    # By hand: other spaces, no "source", no "sha256".
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    Path("photos/captions.jsonl").write_text(text)


def make_base() -> None:
    """The parts of a Stable Diffusion, with random weights."""
    config = load_config("config.py")
    module = runpy.run_path("config.py")
    stock = dataclasses.replace(module["UNET"], conditional_attention=False)
    assert config.networks.base == (Path("base"),)
    tokenizer = Path("tokenizer")
    tokenizer.mkdir()
    shipped = Path(xpsr_jax.__file__).parent / "assets" / "tokenizer"
    # The single bytes, the same at the end of a word, and the two special tokens.
    vocabulary = json.loads((shipped / "vocab.json").read_text())
    kept = [token for token, number in vocabulary.items() if number < 512] + ["<|startoftext|>", "<|endoftext|>"]
    (tokenizer / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(kept)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (shipped / name).exists():
            shutil.copy(shipped / name, tokenizer / name)
    parts = {
        "unet": random(lambda rngs: UNet(stock, rngs=rngs)),
        "autoencoder": random(lambda rngs: Autoencoder(module["AUTOENCODER"], rngs=rngs)),
        "text_encoder": random(lambda rngs: TextEncoder(module["TEXT_ENCODER"], rngs=rngs)),
        "tokenizer": model_folder.load_tokenizer(tokenizer),
        "schedule": Schedule(),
    }
    model_folder.save(parts, "base")
    shutil.rmtree(tokenizer)


def random(make):
    network = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    rng = np.random.default_rng(0)

    def values(path, leaf):
        deviation = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if path[-2].key == "kernel" else 0.5
        return jnp.asarray((path[-2].key == "scale") + deviation * rng.standard_normal(leaf.shape), jnp.float32)

    nnx.update(network, jax.tree_util.tree_map_with_path(values, nnx.state(network, nnx.Param)))
    return network


def make_runs() -> None:
    command("train.py", "--config", "config.py", "--distributed", "off", "--run", "runs/whole")
    # One that SIGTERM stops between two lines of its log.
    scalars = log.Log.scalars

    def and_stop(self, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return scalars(self, step)

    log.Log.scalars = and_stop
    command("train.py", "--config", "config.py", "--distributed", "off", "--run", "runs/half", code=130)
    log.Log.scalars = scalars
    arguments = ("--config", "config.py:autoencoder", "--distributed", "off", "--run", "runs/autoencoder")
    command("train.py", *arguments)
    for run in Path("runs").iterdir():
        # What nothing reads.
        shutil.rmtree(run / "tensorboard")
        (run / "losses.png").unlink(missing_ok=True)


def make_data() -> None:
    command("xpsr_jax.caption", "measured", "photos", "--output", "captions_measured.jsonl", "--high", "A picture.")
    command("xpsr_jax.caption", "measured", "photos", "--output", "captions_half.jsonl", "--limit", 2)
    command("xpsr_jax.caption", "measured", "photos", "--output", "lr_captions.jsonl", "--high", "Something blurry.")
    command("xpsr_jax.prepare_data", "records", "photos", "--output", "records", "--images-per-file", 2, *PREPARE)
    command("xpsr_jax.prepare_data", "records", "photos", "--output", "records_tfds", "--format", "tfds", *PREPARE)
    command("xpsr_jax.prepare_data", "pairs", "photos", "--output", "pairs", "--crop-size", 32, "--rounds", 1, *PREPARE)
    validation = ("validation", "photos", "--output", "validation", "--crop-size", 32, "--crops", 1, *PREPARE)
    command("xpsr_jax.prepare_data", *validation)
    command("xpsr_jax.prepare_data", "embeddings", "photos", "--model", "base", "--output", "embeddings")
    # Stopped at a broken photograph.
    whole = Path("photos/3.png").read_bytes()
    Path("photos/3.png").write_bytes(whole[: len(whole) // 2])
    unfinished = ("records", "photos", "--output", "unfinished", "--images-per-file", 2, "--on-error", "stop", *PREPARE)
    command("xpsr_jax.prepare_data", *unfinished, code=1)
    Path("photos/3.png").write_bytes(whole)


def make_restored() -> None:
    command("convert_weights.py", "runs/whole/model", "--output", "orbax", "--to", "orbax", "--dtype", "float16")
    arguments = ("validation/LR", "--model", "runs/whole/model", "--captions", "validation/LR/captions.jsonl")
    arguments += ("--distributed", "off", "--output")
    command("sample.py", *arguments, "restored")
    # Stopped half-way.
    hidden = [Path(f"validation/LR/{i}_0.png") for i in (2, 3)]
    for file in hidden:
        file.rename(file.with_suffix(".hidden"))
    command("sample.py", *arguments, "restored_half")
    for file in hidden:
        file.with_suffix(".hidden").rename(file)
    # Without captions.
    measured = ("validation/LR/0_0.png", "--model", "runs/whole/model", "--missing-captions", "measured")
    command("sample.py", *measured, "--distributed", "off", "--output", "restored_measured")
    evaluation = ("--restored", "restored", "--reference", "validation", "--metrics", "psnr", "ssim", "--set", "none")
    command("xpsr_jax.evaluate", *evaluation, "--output", "evaluation")
    Path("evaluation/report.html").unlink()


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        shutil.copy(HERE / "config.py", folder)
        os.chdir(folder)
        make_photos()
        make_base()
        make_data()
        make_runs()
        make_restored()
        # Absolute paths are those of the machine. The tests put theirs into this place.
        for file in folder.rglob("*.json*"):
            if file.is_file():
                file.write_text(file.read_text().replace(temporary, "@HERE@"))
        with tarfile.open(HERE / "files.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name, filter=plain)
        os.chdir(HERE)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the machine's owner."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
