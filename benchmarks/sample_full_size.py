"""Measures seconds and peak memory for restoring one image, 128 -> 512, with a random full-size model.

    python benchmarks/sample_full_size.py --work DIR

First the model is written: XPSR's UNet and ControlNet, and Stable Diffusion 1.5's autoencoder and text encoder, in
float32, 8 GB in DIR. Then two new processes, one after the other, load it and restore an image like sample.py. The
first starts with an empty compilation cache, the second uses the cache of the first. Each process measures two guided
steps, from which the time of the paper's 50 steps is extrapolated. It also measures the single evaluation of the preset
`few_step`. Then the command itself restores with that preset. All files are removed at the end.
"""

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import xpsr_jax
from xpsr_jax.config import FEW_STEP, PAPER, Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.inference.compilation import use_compilation_cache, with_fast_convolutions
from xpsr_jax.inference.restore import Restorer
from xpsr_jax.json_files import write_json
from xpsr_jax.models.parameters import parameters
from xpsr_jax.weights import model_folder
from xpsr_jax.weights.networks import NETWORKS, abstract
from xpsr_jax.weights.rules import to_torch
from xpsr_jax.weights.tensors import Tensor
from xpsr_jax.weights.torch_files import write_folder

TOKENIZER = Path(xpsr_jax.__file__).parent / "assets" / "tokenizer"
CAPTION = Caption("A grey cat sleeps on a red sofa.", "The image is blurry, with strong noise.")
SAMPLING = Sampling(steps=2)  # the paper's, with guidance


def write_random_model(folder: Path) -> None:
    """Writes a full-size model folder in the released layout, float32, with one tensor in memory at a time."""
    model_folder.save({"schedule": Schedule(), "tokenizer": TOKENIZER}, folder)
    for network in NETWORKS.values():
        config = network.config()
        tensors = {}
        for path, param in parameters(abstract(network, config)).items():
            read = functools.partial(random_parameter, path, param.shape)
            key, tensor = to_torch(path, Tensor(path, param.shape, np.dtype(np.float32), read), network.names)
            tensors[key] = tensor
        (folder / network.subfolder).mkdir()
        write_json(config.to_json(), folder / network.subfolder / "config.json")
        write_folder(tensors, folder / network.subfolder, network.stem, where=folder)


def random_parameter(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random parameter, scaled so that activations stay near 1."""
    if path.endswith((".scale", ".bias")):
        return np.full(shape, float(path.endswith(".scale")), np.float32)
    values = np.random.default_rng(list(path.encode())).standard_normal(shape, np.float32)
    parameter: np.ndarray = values / np.sqrt(np.prod(shape[:-1]), dtype=np.float32)
    return parameter


def restore_once(folder: Path) -> None:
    """The new process: loads, restores twice, and prints the seconds of each part and the process's peak memory."""
    use_compilation_cache()
    compiling = 0.0

    def on_duration(event: str, duration_secs: float, **_: object) -> None:
        nonlocal compiling
        if event.startswith("/jax/core/compile/"):
            compiling += duration_secs

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    with timed("load"):
        model = with_fast_convolutions(xpsr_jax.load(folder))
    report_peak("after loading")
    restorer = Restorer(model, SAMPLING)
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    with timed("first image, in all"):
        restorer([image], [CAPTION])
    print(f"{'of which compiling':32s} {compiling:8.1f} s")
    marks = [time.perf_counter()]
    restorer([image], [CAPTION], on_steps=lambda _: marks.append(time.perf_counter()))
    marks.append(time.perf_counter())
    print(f"{'second image: start, first step':32s} {marks[1] - marks[0]:8.1f} s")
    print(f"{'second image: second step':32s} {marks[2] - marks[1]:8.1f} s")
    print(f"{'second image: decode, colours':32s} {marks[3] - marks[2]:8.1f} s")
    extrapolated = marks[3] - marks[0] + (PAPER.steps - SAMPLING.steps) * (marks[2] - marks[1])
    print(f"{f'in {PAPER.steps} steps, extrapolated':32s} {extrapolated:8.1f} s")
    restorer = Restorer(model, FEW_STEP)
    for which in ("first", "second"):
        with timed(f"one evaluation, {which} image"):
            restorer([image], [CAPTION])
    report_peak("in all")


@contextmanager
def timed(name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    print(f"{name:32s} {time.perf_counter() - begin:8.1f} s", flush=True)


def report_peak(name: str) -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(f"{'peak memory ' + name:32s} {int(status['VmHWM'].split()[0]) * 1024 / 1e9:8.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--restore", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.restore:
        restore_once(arguments.restore)
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        folder = Path(work) / "model"
        with timed("write the random model"):
            write_random_model(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{'its weights':32s} {size / 1e9:8.2f} GB", flush=True)
        for name in ("empty compilation cache", "second start"):
            print(f"\n{name}", flush=True)
            environment = os.environ | {"XPSR_JAX_CACHE": str(Path(work) / "cache")}
            command = [sys.executable, __file__, "--restore", str(folder)]
            with timed("the whole process"):
                subprocess.run(command, env=environment, check=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)).save(Path(work) / "a.png")
        command = [
            sys.executable,
            "sample.py",
            str(Path(work) / "a.png"),
            "--output",
            f"{work}/out",
            "--model",
            str(folder),
        ]
        with timed("\nsample.py --preset few_step"):
            subprocess.run(
                [*command, "--preset", "few_step", "--missing-captions", "empty"], env=environment, check=True
            )


if __name__ == "__main__":
    main()
