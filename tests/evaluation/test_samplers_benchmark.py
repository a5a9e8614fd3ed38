import dataclasses

import cv2
import numpy as np
import pytest

from benchmarks.samplers import BICUBIC, SAMPLERS, SECONDS, as_csv, markdown, plot, settings
from xpsr_jax.config import Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import METRICS, Crop

CROPS = [Crop(name, *np.zeros((2, 8, 8, 3), np.uint8), Caption("", "")) for name in ("a.png", "b.png")]
SCORES = {BICUBIC: {metric: [0.5, 0.7] for metric in METRICS}} | {
    name: {metric: [0.1, 0.2] for metric in METRICS} | {SECONDS: [1.0, 2.0]}
    for name in ("DDPM, 5 steps", "DDPM, 10 steps", "UniPC, 5 steps", "UniPC, 10 steps")
}


def test_every_sampler_at_every_number_of_steps():
    defaults = Sampling(guidance_scale=2.0, sampler="ddim", eta=0.5)
    compared = settings(defaults, tuple(SAMPLERS), (5, 10), ())
    assert len(compared) == 2 * len(SAMPLERS)
    assert compared["UniPC Karras, 10 steps"] == Sampling(guidance_scale=2.0, sampler="unipc", karras=True, steps=10)
    assert compared["DDIM, 5 steps"] == dataclasses.replace(defaults, eta=0.0, steps=5)
    spaced = settings(defaults, ("Euler",), (5,), ("leading", "trailing"))
    assert spaced["Euler trailing, 5 steps"].spacing == "trailing" and len(spaced) == 2
    with pytest.raises(UserError, match="no sampler Heun"):
        settings(defaults, ("Heun",), (5,), ())


def test_table_and_numbers():
    lines = markdown(SCORES).splitlines()
    assert lines[0] == "| | LPIPS (alex) | DISTS | PSNR-Y | seconds |"
    assert lines[2] == "| bicubic | 0.6000 | 0.6000 | 0.60 |  |"
    assert lines[-1] == "| UniPC, 10 steps | 0.1500 | 0.1500 | 0.15 | 1.50 |"
    numbers = as_csv(CROPS, SCORES).splitlines()
    assert numbers[0] == "method,image,PSNR-Y,SSIM-Y,LPIPS (alex),DISTS,seconds"
    assert numbers[2] == "bicubic,b.png,0.7,0.7,0.7,0.7,"
    assert len(numbers) == 1 + 2 * len(SCORES)


def test_plot(tmp_path):
    plot(SCORES, tmp_path / "samplers.png")
    assert cv2.imread(str(tmp_path / "samplers.png")).shape[1] > 1000
