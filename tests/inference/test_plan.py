import dataclasses

import pytest

from xpsr_jax.config import PAPER, RELEASED, Sampling
from xpsr_jax.diffusion.consistency import Consistency
from xpsr_jax.diffusion.ddim import Ddim
from xpsr_jax.diffusion.ddpm import Ddpm
from xpsr_jax.diffusion.dpm_solver import DpmSolver
from xpsr_jax.diffusion.euler import Euler
from xpsr_jax.diffusion.making import make_sampler
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.diffusion.unipc import UniPc
from xpsr_jax.errors import UserError
from xpsr_jax.inference.plan import Run, first_step, plan_runs

SCHEDULE = Schedule()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Ddpm(SCHEDULE)),
        ({"sampler": "ddim", "eta": 0.5}, Ddim(SCHEDULE, eta=0.5)),
        ({"sampler": "dpm_solver", "karras": True}, DpmSolver(SCHEDULE, karras=True)),
        ({"sampler": "unipc", "karras": True}, UniPc(SCHEDULE, karras=True)),
        ({"sampler": "euler", "karras": True}, Euler(SCHEDULE, karras=True)),
        ({"sampler": "euler_ancestral"}, Euler(SCHEDULE, ancestral=True)),
        ({"sampler": "consistency"}, Consistency(SCHEDULE)),
    ],
)
def test_the_sampler_that_is_named(settings, expected):
    assert make_sampler(Sampling(**settings), SCHEDULE) == expected


def test_the_presets_use_ddpm():
    assert make_sampler(PAPER, SCHEDULE) == make_sampler(RELEASED, SCHEDULE) == Ddpm(SCHEDULE)


def test_strength_runs_the_last_steps_and_at_least_one():
    steps = {strength: first_step(Sampling(steps=10, strength=strength)) for strength in (1.0, 0.35, 0.3, 0.01)}
    assert steps == {1.0: 0, 0.35: 7, 0.3: 7, 0.01: 9}


def test_runs_of_steps_that_are_computed_alike():
    assert list(plan_runs(Sampling(steps=5), at_most=2)) == [
        Run(0, 2, True, True),
        Run(2, 4, True, True),
        Run(4, 5, True, True),
    ]
    parts = Sampling(steps=10, guidance_interval=(0.2, 0.7), conditioning_interval=(0.0, 0.55))
    assert list(plan_runs(parts, at_most=10)) == [
        Run(0, 2, False, True),
        Run(2, 5, True, True),
        Run(5, 7, True, False),
        Run(7, 10, False, False),
    ]
    # A step is computed as it would be at full strength.
    later = dataclasses.replace(parts, strength=0.6)
    assert list(plan_runs(later, at_most=10)) == [Run(4, 5, True, True), *list(plan_runs(parts, at_most=10))[2:]]
    off = dataclasses.replace(parts, guidance_scale=0.0, conditioning_interval=(0.0, 1.0))
    assert list(plan_runs(off, at_most=99)) == [Run(0, 10, False, True)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 1.5, "sampler": "ddim"}, "eta must be from 0 to 1, not 1.5"),
        ({"eta": 0.5}, 'eta is a setting of the sampler "ddim", not of "ddpm"'),
        ({"karras": True}, "karras is a setting of the samplers dpm_solver, unipc, euler"),
        ({"guidance_rescale": -0.1}, "guidance_rescale must be from 0 to 1, not -0.1"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval must be two fractions from 0 to 1 in rising order"),
        ({"conditioning_interval": (0.0, 1.2)}, r"conditioning_interval\[1\] must be from 0 to 1, not 1.2"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"strength": 0.5, "start": "noise"}, 'needs start "lr" or "lr_without_noise", not "noise"'),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)
