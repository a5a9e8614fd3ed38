import dataclasses

import cv2
import pytest

from benchmarks.samplers import BICUBIC, SAMPLERS, SECONDS, markdown, means, plot, read_rows, settings, write_rows
from xpsr_jax.config import Sampling
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import METRICS

METHODS = ("DDPM, 5 steps", "DDPM, 10 steps", "UniPC, 5 steps", "UniPC, 10 steps")
ROWS = [
    {"crop": str(i), "image": f"{i}.png", "method": method}
    | dict.fromkeys(METRICS, repr(value + (method == BICUBIC)))
    | {SECONDS: "" if method == BICUBIC else repr(10 * value)}
    for i, value in enumerate((0.1, 0.2))
    for method in (BICUBIC, *METHODS)
]


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


def test_table():
    lines = markdown(means(ROWS)).splitlines()
    assert lines[0] == "| | LPIPS (alex) | DISTS | PSNR-Y | seconds |"
    assert lines[2] == "| bicubic | 1.1500 | 1.1500 | 1.15 |  |"
    assert lines[-1] == "| UniPC, 10 steps | 0.1500 | 0.1500 | 0.15 | 1.50 |"


def test_going_on_with_what_was_measured(tmp_path):
    file = tmp_path / "samplers.csv"
    assert read_rows(file, (BICUBIC, *METHODS)) == []
    write_rows(ROWS, file)
    assert read_rows(file, (BICUBIC, *METHODS)) == ROWS
    with pytest.raises(UserError, match=r"samplers\.csv is of other samplers or steps"):
        read_rows(file, (BICUBIC, *METHODS[:2]))


def test_plot(tmp_path):
    plot(means(ROWS), tmp_path / "samplers.png")
    assert cv2.imread(str(tmp_path / "samplers.png")).shape[1] > 1000
