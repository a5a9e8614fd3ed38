"""The losses by hand: resizes, terms, and what is drawn for a sample. Their values are the oracle's (its own test)."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpsr_jax.config import Loss
from xpsr_jax.models.controlnet import ControlNetOutput, ImageFeatures
from xpsr_jax.training.losses import autoencoder_loss, degradation_free_constraint, sample_keys

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def reduced(x, factor):
    """The mean of each cell's four middle pixels: two taps along an axis, whatever the factor."""
    first, second = factor // 2 - 1, factor // 2
    rows = (x[:, first::factor] + x[:, second::factor]) / 2
    return (rows[:, :, first::factor] + rows[:, :, second::factor]) / 2


def test_every_head_is_held_to_the_clean_image_at_its_size():
    image, latents = noise(2, 16, 8, 3), noise(2, 4, 2, 4)

    rgbs = (noise(2, 8, 4, 3), noise(2, 4, 2, 3))
    predictions = (noise(2, 4, 2, 4), noise(2, 2, 1, 4), noise(2, 2, 1, 4))
    control = ControlNetOutput(residuals=(None, None), mid=None, latent_predictions=predictions)
    terms = degradation_free_constraint(control, ImageFeatures(None, rgbs), image=image, latents=latents)
    expected = {
        "rgb_0": rgbs[0] - reduced(image, 2),
        "rgb_1": rgbs[1] - reduced(image, 4),
        "latent_0": predictions[0] - latents,
        "latent_1": predictions[1] - reduced(latents, 2),
        "latent_mid": predictions[2] - reduced(latents, 2),
    }
    assert terms.keys() == expected.keys()
    for name, difference in expected.items():
        assert float(terms[name]) == pytest.approx(np.abs(difference).mean(), rel=1e-6)
    without = ControlNetOutput(residuals=(None, None), mid=None, latent_predictions=())
    assert degradation_free_constraint(without, ImageFeatures(None, ()), image=image, latents=latents) == {}


def test_what_is_drawn_depends_on_the_seed_and_the_samples_key_alone():
    def drawn(keys, seed):
        return np.stack([jax.random.key_data(kind) for kind in sample_keys(jnp.array(keys, jnp.uint32), seed)])

    both = drawn([5, 2**32 - 1], 0)
    np.testing.assert_array_equal(both, np.concatenate([drawn([5], 0), drawn([2**32 - 1], 0)], axis=1))
    assert len({tuple(key) for key in [*both.reshape(-1, 2), *drawn([5], 1).reshape(-1, 2)]}) == 9


def fake_autoencoder(log_variance):
    """Latents are the image; decoding undoes the scale."""
    config = SimpleNamespace(scaling_factor=0.5)
    return SimpleNamespace(
        config=config,
        moments=lambda image: (image, jnp.full_like(image, log_variance)),
        decode=lambda latents: latents / config.scaling_factor,
    )


@pytest.mark.parametrize("bound", [0.0, 0.6])
def test_autoencoder_loss_and_the_noise_on_its_latents(bound):
    """Where latents are the image, the L1 is the noise's: the posterior's and, unscaled, that of `latent_noise`."""
    image = 0.1 * noise(64, 32, 32, 3)
    batch = {"hr": image, "key": np.arange(64, dtype=np.uint32)}
    loss = Loss(reconstruction=2.0, perceptual=3.0, kl=0.5, latent_noise=bound)
    networks = SimpleNamespace(autoencoder=fake_autoencoder(np.log(0.01)))

    def distance(a, b):
        return jnp.full(len(a), 0.25) + 0 * (a - b).mean((1, 2, 3))

    value, terms = autoencoder_loss(networks, batch, lpips=distance, loss=loss, seed=0)
    assert float(terms["lpips"]) == pytest.approx(0.25)
    assert float(terms["kl"]) == pytest.approx(0.5 * (np.mean(image**2) + 0.01 - 1 - np.log(0.01)), rel=1e-5)
    assert float(value) == pytest.approx(float(2 * terms["l1"] + 3 * terms["lpips"] + 0.5 * terms["kl"]), rel=1e-6)
    # Deviation 0.1, and sqrt(0.1^2 + (u / 0.5)^2) with u uniform up to the bound; a normal's mean distance is 0.798.
    u = np.linspace(0, bound, 1001)
    assert float(terms["l1"]) == pytest.approx(
        0.7979 * np.sqrt(0.01 + (u / 0.5) ** 2).mean(), rel=0.15 if bound else 0.01
    )
