import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.flax import load_file

import xpsr_jax
from xpsr_jax.diffusion.ddim import Ddim
from xpsr_jax.diffusion.ddpm import Ddpm
from xpsr_jax.diffusion.dpm_solver import DpmSolver
from xpsr_jax.diffusion.euler import Euler
from xpsr_jax.diffusion.guidance import guide
from xpsr_jax.diffusion.process import alphas_cumprod, levels_at
from xpsr_jax.diffusion.samplers import advance, normal, sample, start_latents, step_noise
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.diffusion.unipc import UniPc

pytestmark = pytest.mark.usefixtures("compiled_quickly")

STEPS = 4


@pytest.fixture(scope="module")
def stored(vectors):
    """The runs of the released pipeline, with channels last."""
    tensors = load_file(vectors / "xpsr" / "sampling.safetensors")
    return {key: np.moveaxis(array, -3, -1) if array.ndim >= 4 else array for key, array in tensors.items()}


@pytest.fixture(scope="module")
def schedule(vectors):
    return Schedule.from_json(json.loads((vectors / "xpsr" / "sampling.json").read_text())["scheduler"])


@pytest.fixture(scope="module")
def run(vectors, stored, schedule, tmp_path_factory):
    """`run(case, index, latents)` gives the latents after that step, with the networks and inputs of a stored case."""
    folder = tmp_path_factory.mktemp("released")
    for name in ("unet", "controlnet"):
        (folder / name).mkdir()
        (folder / name / "config.json").symlink_to(vectors / "xpsr" / f"{name}_config.json")
        (folder / name / "diffusion_pytorch_model.safetensors").symlink_to(vectors / "xpsr" / f"{name}.safetensors")
    networks = xpsr_jax.load_networks(folder)
    sampler = Ddpm(schedule)

    @nnx.jit
    def one_step(networks, inputs, noises, latents, index):
        unet, controlnet = networks
        high = jnp.concatenate([inputs["high_pos"], inputs["high_neg"]])
        low = jnp.concatenate([inputs["low_pos"], inputs["low_neg"]])
        features = controlnet.encode_image(jnp.concatenate([inputs["image"]] * 2))

        def denoise(latents, timestep):
            both = jnp.concatenate([latents, latents])
            timesteps = jnp.full(2, timestep)
            control = controlnet(both, timesteps, high, low, features)
            prediction = unet(both, timesteps, high, control.residuals, control.mid)
            return guide(prediction[:1], prediction[1:], scale=5.5, form="released")

        state, table = sampler.init(latents), sampler.table(STEPS)
        return advance(sampler, denoise, state, table, lambda index: noises[index], index, index + 1).latents

    def run(case, index, latents):
        names = ("high_pos", "high_neg", "low_pos", "low_neg", "image")
        inputs = {name: stored[f"{case}.in.{name}"] for name in names}
        return one_step(networks, inputs, stored[f"{case}.step_noise"], latents, index)

    return run


def start_of(stored, schedule, case):
    levels = {"first_level": levels_at(schedule, jnp.int32(751)), "second_level": levels_at(schedule, jnp.int32(800))}
    if case == "noise":
        return start_latents("noise", *[stored["noise.in.init_latents"]] * 3, **levels)
    lr_latents = 0.18215 * stored["lr.in.vae_latent_unscaled"]
    return start_latents(
        "lr_noised_twice", lr_latents, stored["lr.in.init_noise"], stored["lr.in.added_noise"], **levels
    )


def relative_error(result, expected):
    return np.abs(result - expected).max() / np.sqrt(np.mean(np.square(expected)))


@pytest.mark.parametrize("case", ["noise", "lr"])
def test_trajectories_equal_the_released_pipelines(run, stored, schedule, case):
    latents = jnp.asarray(start_of(stored, schedule, case))
    expected = stored[f"{case}.latents"]
    free, teacher = [], []
    previous = latents
    for i in range(STEPS):
        latents = run(case, i, latents)
        free.append(relative_error(latents, expected[i]))
        teacher.append(relative_error(run(case, i, previous), expected[i]))
        previous = expected[i]
    assert max(teacher) <= 4e-5, teacher  # measured 1.4e-5 (noise) and 1.4e-5 (lr)
    assert max(free) <= 1e-4, free  # measured 1.9e-5 and 3.2e-5


def test_lr_start_is_noised_once(stored, schedule):
    lr_latents, noise = 0.18215 * stored["lr.in.vae_latent_unscaled"], stored["lr.in.init_noise"]
    alpha = alphas_cumprod(schedule)[751]
    table = Ddpm(schedule).table(STEPS)
    level = jnp.asarray(table.signal[0]), jnp.asarray(table.sigma[0])
    once = start_latents("lr", lr_latents, noise, noise, first_level=level, second_level=level)
    np.testing.assert_allclose(once, np.sqrt(alpha) * lr_latents + np.sqrt(1 - alpha) * noise, atol=1e-6)


@pytest.mark.parametrize("sampler", [Ddpm, Ddim, Euler, DpmSolver, UniPc])
def test_a_perfect_network_recovers_the_image_exactly(sampler):
    """The last step adds no noise (1e-10 in DDPM). If the true noise is predicted, the result is the clean latents."""
    schedule = Schedule(set_alpha_to_one=True)
    x0 = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 4)), jnp.float32)

    def denoise(latents, timestep):
        alpha = jnp.asarray(alphas_cumprod(schedule))[timestep.astype(int)]
        return (latents - jnp.sqrt(alpha) * x0) / jnp.sqrt(1 - alpha)

    keys = jax.random.split(jax.random.key(0), 2)
    run = jax.jit(lambda steps: sample(sampler(schedule), denoise, *noises, steps=steps), static_argnums=0)
    noises = normal(keys, x0.shape[1:]), step_noise(keys, x0.shape[1:])
    for steps in (1, 7):
        np.testing.assert_allclose(run(steps), x0, atol=1e-5)  # measured 2e-6


@pytest.mark.parametrize("sampler", [Ddpm, Ddim])
def test_clip_sample_clips_the_estimate(sampler):
    schedule = Schedule(clip_sample=True, clip_sample_range=0.5, prediction_type="sample", set_alpha_to_one=True)
    result = sample(
        sampler(schedule),
        lambda x, t: jnp.full_like(x, 3.0),
        jnp.zeros((1, 2, 2, 4)),
        lambda i: jnp.zeros((1, 2, 2, 4)),
        steps=2,
    )
    np.testing.assert_allclose(result, 0.5, atol=1e-6)


def test_an_images_noise_does_not_depend_on_its_place_in_the_batch():
    keys = jax.random.split(jax.random.key(3), 3)
    shape = (4, 6, 4)
    noise = jax.jit(lambda keys: step_noise(keys, shape)(jnp.int32(5)))
    together = noise(keys)
    np.testing.assert_array_equal(noise(keys[::-1]), together[::-1])
    np.testing.assert_array_equal(noise(keys[1:2]), together[1:2])
    other_step = step_noise(keys, shape)(jnp.int32(6))
    assert not np.array_equal(other_step, together)
    assert len({np.asarray(image).tobytes() for image in together}) == 3
