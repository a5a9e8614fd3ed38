"""Every sampler equals diffusers' schedulers over whole trajectories (tests/vectors/make_sampler_vectors.py)."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from xpsr_jax.diffusion.consistency import Consistency
from xpsr_jax.diffusion.ddim import Ddim
from xpsr_jax.diffusion.ddpm import Ddpm
from xpsr_jax.diffusion.dpm_solver import DpmSolver
from xpsr_jax.diffusion.euler import Euler
from xpsr_jax.diffusion.samplers import advance
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.diffusion.unipc import UniPc
from xpsr_jax.errors import UserError

STEPS = (1, 2, 5, 16)
MOST = max(STEPS)
TOLERANCE = 1e-5  # measured 2.5e-6 at most
SAMPLERS = {
    "ddpm": Ddpm,
    "ddim": Ddim,
    "ddim_eta_1": lambda schedule: Ddim(schedule, eta=1.0),
    "dpm_solver": DpmSolver,
    "dpm_solver_karras": lambda schedule: DpmSolver(schedule, karras=True),
    "unipc": UniPc,
    "unipc_karras": lambda schedule: UniPc(schedule, karras=True),
    "euler": Euler,
    "euler_karras": lambda schedule: Euler(schedule, karras=True),
    "euler_ancestral": lambda schedule: Euler(schedule, ancestral=True),
}
# For models trained for few steps. diffusers' class gets its timesteps from the caller.
FEW_STEPS = {"consistency": Consistency}


@pytest.fixture(scope="module")
def stored(vectors):
    tensors = load_file(vectors / "samplers.safetensors")
    return {key: np.moveaxis(array, -3, -1) if array.ndim >= 4 else array for key, array in tensors.items()}


def network(latents, timestep):
    """The formula that replaces a network in the stored runs."""
    return 0.5 * latents + 0.5 * jnp.sin(2 * jnp.roll(latents, 1, axis=-1) + jnp.float32(timestep) / 100)


@pytest.fixture(scope="module")
def run(stored):
    """`run(name, schedule, steps, first)` gives the timesteps, and the latents after every executed step.

    Spacing, rescaling and the number of steps are only in the table, so one program is enough for all of them.
    """

    @functools.cache
    def program(name, prediction_type):
        sampler = (SAMPLERS | FEW_STEPS)[name](Schedule(prediction_type=prediction_type))
        noises = jnp.asarray(stored["noises"])
        return jax.jit(lambda state, table, i: advance(sampler, network, state, table, lambda i: noises[i], i, i + 1))

    def run(name, schedule, steps, first=0):
        sampler = (SAMPLERS | FEW_STEPS)[name](schedule)
        table = jax.tree.map(lambda column: np.pad(column, (0, MOST - steps)), sampler.table(steps, first))
        state, after = sampler.init(jnp.asarray(stored["start"])), []
        for i in range(first, steps):
            state = program(name, schedule.prediction_type)(state, table, i)
            after.append(state.latents)
        return table.timestep[:steps], np.concatenate(after)

    return run


def check(run, stored, key, name, schedule, steps, first=0):
    timesteps, latents = run(name, schedule, steps, first)
    np.testing.assert_allclose(timesteps, stored[f"{key}.timesteps"], rtol=1e-5)
    expected = stored[f"{key}.latents"]
    errors = [np.abs(a - b).max() / np.sqrt(np.mean(b**2)) for a, b in zip(latents, expected, strict=True)]
    assert max(errors) <= TOLERANCE, errors


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_step_equals_diffusers(run, stored, name, prediction_type):
    for spacing, steps in itertools.product(("leading", "trailing", "linspace"), STEPS):
        schedule = Schedule(prediction_type=prediction_type, timestep_spacing=spacing)
        check(run, stored, f"{name}.{prediction_type}.{spacing}.{steps}", name, schedule, steps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_equal_latent_consistency_models(run, stored, prediction_type, steps):
    """The timesteps are 999; 999 and 499; 999, 749, 499 and 249. Measured: 1.1e-6 at most."""
    schedule = Schedule(prediction_type=prediction_type, timestep_spacing="trailing")
    check(run, stored, f"consistency.{prediction_type}.trailing.{steps}", "consistency", schedule, steps)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddim_eta_1"])
def test_from_pure_noise_equals_diffusers(run, stored, name):
    schedule = Schedule(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    for steps in STEPS:
        check(run, stored, f"{name}.zero_snr.{steps}", name, schedule, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_starting_partway_equals_diffusers(run, stored, name):
    check(run, stored, f"{name}.partway", name, Schedule(prediction_type="v_prediction"), 7, first=4)


def test_ddim_with_eta_1_can_start_from_pure_noise(run):
    """diffusers returns NaN here."""
    schedule = Schedule(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    pair = [run(name, dataclasses.replace(schedule, set_alpha_to_one=True), 5)[1] for name in ("ddim_eta_1", "ddpm")]
    np.testing.assert_allclose(*pair, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "consistency"])
def test_predicting_the_noise_of_pure_noise_is_refused(name):
    schedule = Schedule(timestep_spacing="trailing", rescale_betas_zero_snr=True)
    with pytest.raises(UserError, match="v_prediction"):
        (SAMPLERS | FEW_STEPS)[name](schedule).table(4)


@pytest.mark.parametrize("name", [*SAMPLERS, *FEW_STEPS])
@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps(name, steps):
    with pytest.raises(UserError, match="number of steps"):
        (SAMPLERS | FEW_STEPS)[name](Schedule()).table(steps)
