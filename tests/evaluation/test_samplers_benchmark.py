import dataclasses

import cv2
import pytest

from benchmarks.samplers import (
    BICUBIC,
    COST,
    COSTS,
    FROM_WHOLE,
    SAMPLERS,
    SECONDS,
    cost,
    differences,
    markdown,
    means,
    plot,
    read_interval,
    read_rows,
    settings,
    with_savings,
    write_rows,
)
from xpsr_jax.config import Sampling
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.crops import METRICS

METHODS = ("DDPM, 5 steps", "DDPM, 10 steps", "UniPC, 5 steps", "UniPC, 10 steps")
ROWS = [
    {"crop": str(i), "image": f"{i}.png", "method": method}
    | dict.fromkeys(METRICS, repr(value + (method == BICUBIC)))
    | {SECONDS: "" if method == BICUBIC else repr(10 * value), COST: "", FROM_WHOLE: ""}
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
    with pytest.raises(UserError, match="unknown sampler Heun"):
        settings(defaults, ("Heun",), (5,), ())


def test_table():
    lines = markdown(means(ROWS)).splitlines()
    assert lines[0] == "| | LPIPS (alex) | DISTS | PSNR-Y | seconds | cost | from whole |"
    assert lines[2] == "| bicubic | 1.1500 | 1.1500 | 1.15 |  |  |  |"
    assert lines[-1] == "| UniPC, 10 steps | 0.1500 | 0.1500 | 0.15 | 1.50 |  |  |"


def test_caching_and_guidance_intervals_are_combined():
    plain = Sampling(steps=20)
    compared = with_savings({"DDPM, 20 steps": plain}, [(0.0, 1.0), read_interval("0:0.5")], (1, 3), (1, 2))
    assert list(compared) == [
        "DDPM, 20 steps",
        "DDPM, 1 of 3 whole, 1 layers, 20 steps",
        "DDPM, 1 of 3 whole, 2 layers, 20 steps",
        "DDPM, guidance 0 to 0.5, 20 steps",
        "DDPM, guidance 0 to 0.5, 1 of 3 whole, 1 layers, 20 steps",
        "DDPM, guidance 0 to 0.5, 1 of 3 whole, 2 layers, 20 steps",
    ]
    assert cost(plain) == 20
    assert cost(compared["DDPM, 1 of 3 whole, 2 layers, 20 steps"]) == pytest.approx(7 + 13 * COSTS[True][2])
    assert cost(compared["DDPM, guidance 0 to 0.5, 20 steps"]) == pytest.approx(10 + 10 * COSTS[False][0])
    with pytest.raises(UserError, match=r"written as 0\.2:0\.8"):
        read_interval("0.2")


def test_equal_paired_differences_have_an_interval_without_width():
    rows = [
        row | {"LPIPS (alex)": repr(float(row["LPIPS (alex)"]) * (0.9 if "Uni" in row["method"] else 1))}
        for row in ROWS
    ]
    lines = differences(rows, "DDPM, 5 steps").splitlines()
    assert lines[0] == "| difference from DDPM, 5 steps | LPIPS (alex), % | DISTS, % |"
    assert lines[2] == "| DDPM, 10 steps | +0.0 (+0.0 to +0.0) | +0.0 (+0.0 to +0.0) |"
    assert lines[3].startswith("| UniPC, 5 steps | -10.0 (")


def test_a_stopped_comparison_is_resumed(tmp_path):
    file = tmp_path / "samplers.csv"
    assert read_rows(file, (BICUBIC, *METHODS)) == []
    write_rows(ROWS, file)
    assert read_rows(file, (BICUBIC, *METHODS)) == ROWS
    with pytest.raises(UserError, match=r"samplers\.csv has other samplers or steps"):
        read_rows(file, (BICUBIC, *METHODS[:2]))


def test_plot(tmp_path):
    plot(means(ROWS), tmp_path / "samplers.png")
    assert cv2.imread(str(tmp_path / "samplers.png")).shape[1] > 1000
