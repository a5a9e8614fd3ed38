"""Measures the peak memory of restoring one picture of several sizes, by the shipped model without its first stage.

python benchmarks/memory.py
python benchmarks/memory.py --sides 512 1024 --untiled-sides 512 1024 2048

Each picture is restored in its own process, in one step (more steps do not need more memory). Prints a markdown table:
the process's peak (VmHWM), the increase after the model was loaded, and CPU seconds.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import xpsr_jax
from xpsr_jax.assets import DEMO, TINY_MODEL
from xpsr_jax.data.captions import Caption
from xpsr_jax.images.reading import read_image
from xpsr_jax.inference.compilation import use_compilation_cache
from xpsr_jax.inference.restore import Restorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sides", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="sides of square results, in tiles"
    )
    parser.add_argument("--untiled-sides", type=int, nargs="*", default=[512, 1024, 2048], help="sides without tiles")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--untiled", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone is not None:
        restore(arguments.alone, untiled=arguments.untiled)
        return
    print("| output | | peak, GB | above the loaded model, GB | CPU seconds |\n|---|---|---|---|---|", flush=True)
    for how, sides in (("tiles", arguments.sides), ("whole", arguments.untiled_sides)):
        for side in sides:
            words = [sys.executable, __file__, "--alone", str(side), *(["--untiled"] if how == "whole" else [])]
            run = subprocess.run(words, capture_output=True, text=True)
            said = run.stdout if run.returncode == 0 else f"failed ({run.returncode}) | | "
            print(f"| {side}² | {how} | {said.strip()} |", flush=True)


def restore(side: int, *, untiled: bool) -> None:
    """Restores the enlarged demo photograph to a square of this side, and prints memory and time."""
    use_compilation_cache()
    model = xpsr_jax.load(TINY_MODEL, first_stage="none")
    sampling = dataclasses.replace(model.defaults, steps=1)
    if untiled:
        sampling = dataclasses.replace(sampling, tile_size=0, vae_tile_size=0)
    photo = Image.fromarray(read_image(DEMO / "lr.png"))
    lr = np.asarray(photo.resize((side // sampling.upscale,) * 2, Image.Resampling.BICUBIC))
    restorer = Restorer(model, sampling)
    before = peak()
    begin = time.process_time()
    [restored] = restorer([lr], [Caption("a photograph", "blurry")])
    assert restored is not None and restored.shape == (side, side, 3)
    print(f"{peak():.2f} | {peak() - before:.2f} | {time.process_time() - begin:.0f}")


def peak() -> float:
    """This process's largest resident memory so far, in GB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    main()
