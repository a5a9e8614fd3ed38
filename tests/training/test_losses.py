"""The losses against simple computations: resizes, terms, random numbers. test_oracle_training.py has real values."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xpsr_jax.config import Loss
from xpsr_jax.diffusion.ddpm import Ddpm
from xpsr_jax.diffusion.process import alphas_cumprod
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.evaluation.perceptual import Dists
from xpsr_jax.models.controlnet import ControlNetOutput, ImageFeatures
from xpsr_jax.training.discriminator import PatchDiscriminator
from xpsr_jax.training.losses import (
    Distances,
    adversarial_terms,
    autoencoder_loss,
    compare,
    decoder_loss,
    degradation_free_constraint,
    patches,
    sample_keys,
)
from xpsr_jax.training.structure import Bundle

RNG = np.random.default_rng(0)


def noise(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def reduced(x, factor):
    """The mean of each cell's four middle pixels: two taps along each axis, for any factor."""
    first, second = factor // 2 - 1, factor // 2
    rows = (x[:, first::factor] + x[:, second::factor]) / 2
    return (rows[:, :, first::factor] + rows[:, :, second::factor]) / 2


def test_every_head_is_compared_with_the_clean_image_at_its_size():
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


def test_random_numbers_depend_only_on_the_seed_and_the_samples_key():
    def drawn(keys, seed):
        return np.stack([jax.random.key_data(kind) for kind in sample_keys(jnp.array(keys, jnp.uint32), seed)])

    both = drawn([5, 2**32 - 1], 0)
    np.testing.assert_array_equal(both, np.concatenate([drawn([5], 0), drawn([2**32 - 1], 0)], axis=1))
    assert len({tuple(key) for key in [*both.reshape(-1, 2), *drawn([5], 1).reshape(-1, 2)]}) == 9


class FakeBundle(Bundle):
    """A bundle of the given networks, which may be stand-ins."""

    def __init__(self, **networks):
        for name, network in networks.items():
            setattr(self, name, network)


class FakeControlNet:
    """Returns the image as its features and mid output."""

    def encode_image(self, image):
        return image

    def __call__(self, latents, timesteps, high, low, features):
        return SimpleNamespace(residuals=(), mid=features)


class ConstantDistance(Dists):
    """0.25 for all images, with a gradient of 0."""

    def __init__(self):
        pass

    def __call__(self, a, b):
        return jnp.full(len(a), 0.25) + 0 * (a - b).mean((1, 2, 3))


def test_autoencoder_loss():
    """If latents equal the image, the L1 is the posterior's noise: the mean of |n| is 0.798 standard deviations."""
    image = 0.1 * noise(64, 32, 32, 3)
    autoencoder = SimpleNamespace(
        config=SimpleNamespace(scaling_factor=0.5),
        moments=lambda image: (image, jnp.full_like(image, np.log(0.01))),
        decode=lambda latents: latents / 0.5,
    )
    loss = Loss(reconstruction=2.0, perceptual=3.0, kl=0.5)
    batch = {"hr": image, "key": jnp.arange(64, dtype=jnp.uint32)}
    networks = FakeBundle(autoencoder=autoencoder)
    value, terms = autoencoder_loss(networks, batch, distances=Distances(ConstantDistance()), loss=loss, seed=0)
    assert float(terms["l1"]) == pytest.approx(0.0798, rel=0.01)
    assert float(terms["perceptual"]) == pytest.approx(0.25)
    assert float(terms["kl"]) == pytest.approx(0.5 * (float(jnp.mean(image**2)) + 0.01 - 1 - np.log(0.01)), rel=1e-5)
    assert float(value) == pytest.approx(float(2 * terms["l1"] + 3 * terms["perceptual"] + 0.5 * terms["kl"]), rel=1e-6)


def test_dists_is_computed_on_the_central_square_only():
    """Differences outside of the square have no effect on it."""

    class Difference(ConstantDistance):
        def __call__(self, a, b):
            assert a.shape == (2, 6, 6, 3)
            return jnp.abs(a - b).mean((1, 2, 3))

    image = noise(2, 16, 16, 3)
    other = image.at[:, 5:11, 5:11].add(1.0).at[:, :5].add(7.0)
    loss = Loss(reconstruction=2.0, perceptual=3.0, dists=5.0, dists_side=6)
    value, terms = compare(image, other, distances=Distances(ConstantDistance(), Difference()), loss=loss)
    assert float(terms["dists"]) == pytest.approx(0.5)  # of images in [0, 1]
    assert float(value) == pytest.approx(2 * float(terms["l1"]) + 0.75 + 2.5)
    value, terms = compare(image, other, distances=Distances(ConstantDistance()), loss=loss)
    assert "dists" not in terms and float(value) == pytest.approx(2 * float(terms["l1"]) + 0.75)


def test_the_critic_and_the_image_learn_from_opposite_terms():
    """With a linear critic both gradients are known, and neither term has a gradient in the other side."""

    class Linear(PatchDiscriminator):
        def __init__(self, weight):
            self.weight = nnx.Param(weight)

        def __call__(self, image):
            return self.weight[...] * image.mean(-1, keepdims=True)

    image, photograph = jnp.full((2, 4, 4, 3), 0.25), jnp.full((2, 4, 4, 3), 0.5)

    def terms(weight, image):
        return adversarial_terms(Linear(weight), image, photograph)

    weight = jnp.float32(0.4)
    of = {
        name: jax.grad(lambda *args, name=name: terms(*args)[name], argnums=(0, 1))(weight, image)
        for name in terms(weight, image)
    }
    assert float(terms(weight, image)["realism"]) == pytest.approx(-0.1)
    assert float(terms(weight, image)["critic"]) == pytest.approx((1 - 0.2) + (1 + 0.1))
    assert float(of["realism"][0]) == 0 and float(of["critic"][0]) == pytest.approx(-0.5 + 0.25)
    np.testing.assert_allclose(of["realism"][1].sum(), -0.4, rtol=1e-6)
    assert not of["critic"][1].any()


def test_decoder_loss_uses_sampled_latents_and_trains_only_the_decoder():
    """The fake UNet always predicts half the LR image as clean latents. The loss compares them, decoded, with HR."""
    lr, hr = jnp.abs(noise(2, 8, 8, 3)), noise(2, 8, 8, 3)
    schedule = Schedule()

    def loss_of(decoder, diffusion):
        def unet(latents, timesteps, high, residuals, mid):
            signal = jnp.sqrt(jnp.asarray(alphas_cumprod(schedule))[timesteps])[:, None, None, None]
            return (latents - signal * diffusion * mid) / jnp.sqrt(1 - signal**2)

        networks = FakeBundle(
            unet=unet,
            controlnet=FakeControlNet(),
            autoencoder=SimpleNamespace(encode=lambda image, keys: image, decode=lambda latents: decoder * latents),
            text_encoder=lambda ids: ids,
        )
        text = jnp.zeros((2, 3, 4))
        batch = {"lr": lr, "hr": hr, "key": jnp.arange(2, dtype=jnp.uint32), "high_ids": text, "low_ids": text}
        loss = Loss(reconstruction=2.0, perceptual=3.0)
        options = {
            "sampler": Ddpm(schedule),
            "steps": 3,
            "distances": Distances(ConstantDistance()),
            "loss": loss,
            "seed": 0,
        }
        return decoder_loss(networks, batch, **options)

    (value, terms), gradients = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(1.5, 0.5)
    assert float(terms["l1"]) == pytest.approx(float(jnp.abs(0.75 * lr - hr).mean()), rel=1e-5)  # measured 1e-7
    assert float(value) == pytest.approx(2 * float(terms["l1"]) + 0.75, rel=1e-6)
    assert float(gradients[0]) == pytest.approx(float(2 * (jnp.sign(0.75 * lr - hr) * 0.5 * lr).mean()), rel=1e-4)
    assert float(gradients[1]) == 0.0


def test_patches():
    images = noise(2, 8, 12, 3)
    squares = patches(images, 4)
    assert squares.shape == (12, 4, 4, 3)
    np.testing.assert_array_equal(squares[6 + 1 * 3 + 2], images[1, 4:8, 8:12])
