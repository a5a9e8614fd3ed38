"""Measures convert_weights.py with a random full-size UNet and ControlNet: seconds, and peak memory per converted byte.

    python benchmarks/convert_full_size.py --work DIR

Each conversion runs in its own process. The benchmark needs about 25 GB of disk in DIR, and deletes its files at the
end.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from xpsr_jax.weights.tensors import Tensor
from xpsr_jax.weights.torch_files import write_folder

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "tests" / "vectors"
# The code of the new process: it runs convert_weights.py, and then prints its peak memory (VmHWM, in kB).
_CONVERT = """
import runpy, sys
sys.argv = ["convert_weights.py", *sys.argv[1:]]
runpy.run_path("convert_weights.py", run_name="__main__")
print(open("/proc/self/status").read())
"""


def make(folder: Path) -> None:
    """Writes random networks in the released layout, float32, one tensor at a time."""
    keys = json.loads((VECTORS / "keys_full.json").read_text())
    for name in ("unet", "controlnet"):
        (folder / name).mkdir(parents=True)
        shutil.copyfile(VECTORS / f"{name}_config_full.json", folder / name / "config.json")
        rng = np.random.default_rng(0)

        def random(shape: tuple[int, ...], rng: np.random.Generator) -> Callable[[], np.ndarray]:
            return lambda: 0.02 * rng.standard_normal(shape, np.float32)

        tensors = {
            key: Tensor(key, tuple(shape), np.dtype(np.float32), random(tuple(shape), rng))
            for key, shape in keys[name].items()
        }
        write_folder(tensors, folder / name, "diffusion_pytorch_model", where=folder)


def pickled(source: Path, folder: Path) -> None:
    """Writes the same networks as `.bin` files."""
    import torch
    from safetensors.torch import load_file

    for name in ("unet", "controlnet"):
        (folder / name).mkdir(parents=True)
        shutil.copyfile(source / name / "config.json", folder / name / "config.json")
        weights = load_file(source / name / "diffusion_pytorch_model.safetensors")
        torch.save(weights, folder / name / "diffusion_pytorch_model.bin")


def convert(name: str, source: Path, output: Path, *options: str) -> None:
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    start = time.monotonic()
    command = [sys.executable, "-c", _CONVERT, str(source), "--output", str(output), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert found is not None
    peak, seconds = int(found[1]) * 1024, time.monotonic() - start
    print(
        f"{name:32s} {seconds:6.0f} s   {size / 1e9:5.2f} GB   peak {peak / 1e9:5.2f} GB = {peak / size:.2f} x",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for temporary files")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().work) as name:
        work = Path(name)
        make(work / "float32")
        convert("torch float32 -> float16", work / "float32", work / "float16", "--dtype", "float16")
        convert("torch float16 -> orbax", work / "float16", work / "orbax16", "--to", "orbax")
        shutil.rmtree(work / "float16")
        convert("orbax float16 -> torch float32", work / "orbax16", work / "back16", "--dtype", "float32")
        shutil.rmtree(work / "back16")
        shutil.rmtree(work / "orbax16")
        convert("torch float32 -> orbax", work / "float32", work / "orbax", "--to", "orbax")
        convert("orbax float32 -> torch", work / "orbax", work / "back")
        shutil.rmtree(work / "orbax")
        shutil.rmtree(work / "back")
        try:
            pickled(work / "float32", work / "bin")
        except ImportError:
            print("pickled files are not measured, because PyTorch is not installed")
            return
        convert("pickled float32 -> torch", work / "bin", work / "back")


if __name__ == "__main__":
    main()
