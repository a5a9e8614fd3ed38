import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from xpsr_jax.diffusion.process import (
    add_noise,
    alphas_cumprod,
    clean_estimate,
    levels_at,
    noise_estimate,
    prediction_target,
    velocity,
    visited_timesteps,
)
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.errors import UserError

# The scheduler_config.json of Stable Diffusion 1.5.
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@pytest.fixture(scope="module")
def stored(vectors):
    return load_file(vectors / "xpsr" / "sampling.safetensors")


def test_alphas_equal_the_released_code_bit_for_bit(stored):
    np.testing.assert_array_equal(alphas_cumprod(Schedule.from_json(SD15)), stored["alphas_cumprod"])


@pytest.mark.parametrize("steps", [20, 50])
def test_timesteps_equal_the_released_code(stored, steps):
    timesteps = visited_timesteps(Schedule.from_json(SD15), steps)
    assert timesteps.dtype == np.int32
    np.testing.assert_array_equal(timesteps, stored[f"timesteps_{steps}"])


def test_timesteps_of_other_spacings():
    trailing = Schedule(timestep_spacing="trailing")
    np.testing.assert_array_equal(visited_timesteps(trailing, 4), [999, 749, 499, 249])
    # 1000, 666.7, 333.3 rounded, less one
    np.testing.assert_array_equal(visited_timesteps(trailing, 3), [999, 666, 332])
    np.testing.assert_array_equal(visited_timesteps(Schedule(timestep_spacing="linspace"), 4), [999, 666, 333, 0])
    np.testing.assert_array_equal(visited_timesteps(Schedule(steps_offset=0), 4), [750, 500, 250, 0])
    assert len(visited_timesteps(Schedule(steps_offset=0), 1000)) == 1000


def test_linear_betas():
    schedule = Schedule(beta_start=0.1, beta_end=0.3, beta_schedule="linear", num_train_timesteps=3)
    np.testing.assert_allclose(alphas_cumprod(schedule), [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-6)


def test_json_round_trip_and_defaults():
    schedule = Schedule.from_json(SD15)
    assert schedule == Schedule()
    other = dataclasses.replace(schedule, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=0)
    assert Schedule.from_json(other.to_json()) == other
    # An empty DDPM configuration has diffusers' defaults, which differ from Stable Diffusion's values.
    bare = Schedule.from_json({"_class_name": "DDPMScheduler"})
    assert (bare.beta_start, bare.beta_end, bare.beta_schedule, bare.clip_sample) == (0.0001, 0.02, "linear", True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_schedule", "squaredcos_cap_v2"),
        ("prediction_type", "flow"),
        ("timestep_spacing", "random"),
        ("trained_betas", [0.1, 0.2]),
        ("use_flow_sigmas", True),
        ("timestep_type", "continuous"),
        ("thresholding", True),
        ("variance_type", "learned"),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 10**9),
        ("num_train_timesteps", "1000"),
        ("beta_end", 2.0),
        ("beta_start", float("nan")),
        ("prediction_type", 3),
        ("clip_sample", "no"),
    ],
)
def test_unsupported_values_are_named(unchecked, field, value):
    with pytest.raises(UserError, match=field):
        Schedule.from_json(SD15 | {field: value})


@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
    ],
)
def test_other_classes_are_read(name):
    """Their sampler settings are ignored. Without a timestep_spacing they use "linspace"."""
    config = SD15 | {"_class_name": name, "use_karras_sigmas": True, "solver_order": 3, "use_flow_sigmas": False}
    assert Schedule.from_json(config) == Schedule(timestep_spacing="linspace")
    assert Schedule.from_json(config | {"timestep_spacing": "leading"}) == Schedule()


def test_an_unknown_class_must_state_its_spacing():
    other = SD15 | {"_class_name": "KDPM2DiscreteScheduler"}
    with pytest.raises(UserError, match="timestep_spacing"):
        Schedule.from_json(other)
    assert Schedule.from_json(other | {"timestep_spacing": "leading"}) == Schedule()


def test_rescaling_to_zero_terminal_snr(vectors):
    expected = load_file(vectors / "samplers.safetensors")["zero_snr.alphas_cumprod"]
    schedule = Schedule.from_json(SD15 | {"rescale_betas_zero_snr": True})
    assert alphas_cumprod(schedule)[-1] == 0
    np.testing.assert_allclose(alphas_cumprod(schedule), expected, rtol=2e-5)  # measured 4e-6, at a value of 4e-4
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize("steps", [0, 1000, 1001])
def test_impossible_numbers_of_steps(steps):
    with pytest.raises(UserError, match="steps"):
        visited_timesteps(Schedule(), steps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_target_inverts(prediction_type):
    schedule = Schedule(prediction_type=prediction_type)
    rng = np.random.default_rng(0)
    x0, noise = jnp.asarray(rng.standard_normal((2, 3, 3, 4, 4)), jnp.float32)
    timesteps = jnp.array([800, 0, 500])
    noisy = add_noise(schedule, x0, noise, timesteps)
    target = prediction_target(schedule, x0, noise, timesteps)
    # measured: 1.1e-6 and 5.1e-6 (noise from "sample" at t = 0, where sqrt(1 - ab) is 0.03)
    levels = levels_at(schedule, timesteps)
    np.testing.assert_allclose(clean_estimate(schedule, target, noisy, *levels), x0, atol=5e-6)
    np.testing.assert_allclose(noise_estimate(schedule, target, noisy, *levels), noise, atol=2e-5)


def test_velocity_is_the_derivative_of_the_noisy_latents_by_the_angle():
    schedule = Schedule()
    x0, noise = jnp.asarray(np.random.default_rng(1).standard_normal((2, 1, 2, 2, 4)), jnp.float32)
    alpha = np.float64(alphas_cumprod(schedule)[500])
    angle, small = np.arccos(np.sqrt(alpha)), 1e-6
    noised = [np.cos(a) * np.float64(x0) + np.sin(a) * np.float64(noise) for a in (angle - small, angle + small)]
    expected = (noised[1] - noised[0]) / (2 * small)
    np.testing.assert_allclose(velocity(schedule, x0, noise, jnp.array([500])), expected, atol=1e-6)  # measured 2e-7
