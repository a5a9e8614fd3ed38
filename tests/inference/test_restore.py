import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compilations import compilations
from tests.inference.plainly import restored_plainly
from tests.inference.tiny_model import SAMPLING, tiny_model
from tests.models.golden import error
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.inference.plan import plan_batches
from xpsr_jax.inference.restore import Restorer, restore

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3)]
CAPTIONS = [Caption("a red house", "noisy"), Caption("two dogs", "blurry and dark"), Caption("", "")]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def one_by_one(model):
    return restore(model, IMAGES, CAPTIONS)


def most(a, b):
    """The largest difference between two lists of images, in grey levels."""
    return max(np.abs(np.int32(x) - y).max() for x, y in zip(a, b, strict=True))


def changed(a, b):
    return np.mean(a != b)


def test_equals_the_plain_implementation(model, one_by_one):
    expected = restored_plainly(model, IMAGES[0], CAPTIONS[0])
    assert most([one_by_one[0]], [expected]) <= 1  # measured 0
    assert expected.std() > 5


@pytest.mark.more
def test_a_result_does_not_depend_on_other_images_of_the_batch(model, one_by_one):
    batched = restore(model, IMAGES, CAPTIONS, batch_size=2)
    assert most(batched, one_by_one) <= 1  # measured 1: XLA compiles another program for another batch shape
    reversed_ = restore(model, IMAGES[::-1], CAPTIONS[::-1], batch_size=2)
    assert most(reversed_[::-1], batched) == 0


@pytest.mark.soak
def test_a_result_does_not_depend_on_the_number_of_devices(model, one_by_one):
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    restorer = Restorer(model, mesh=mesh)
    assert restorer.capacity == 2
    assert most(restore(model, IMAGES, CAPTIONS, mesh=mesh), one_by_one) <= 1  # measured 0


@pytest.mark.more
@pytest.mark.parametrize("start", ["lr", "lr_without_noise"])
def test_without_noise_the_seed_changes_nothing(model, start):
    sampling = dataclasses.replace(SAMPLING, sampler="consistency", steps=2, strength=0.5, start=start)
    first, second = (restore(model, IMAGES[:1], CAPTIONS[:1], sampling, seed=seed)[0] for seed in (0, 1))
    assert (changed(first, second) > 0.5) == (start == "lr")


def test_every_input_counts_and_nothing_is_compiled_again(model, one_by_one):
    def restored(image=IMAGES[0], caption=CAPTIONS[0], seed=0, **settings):
        return restore(model, [image], [caption], dataclasses.replace(SAMPLING, **settings), seed=seed)[0]

    np.testing.assert_array_equal(restored(), one_by_one[0])
    other = IMAGES[0].copy()
    other[0, 0, 0] ^= 1
    partly = {"steps": 5, "guidance_interval": (0.2, 1.0)}
    # Two more programs, which are compiled here: without the negative half, and with two low-level captions.
    restored(**partly)
    restored(negative_low="noisy")
    with compilations() as compiled:
        assert changed(restored(seed=1), one_by_one[0]) > 0.5
        assert changed(restored(seed=2**40), one_by_one[0]) > 0.5
        assert changed(restored(caption=Caption("a blue house", "noisy")), one_by_one[0]) > 0.01
        assert changed(restored(caption=Caption("a red house", "clear")), one_by_one[0]) > 0.01
        assert changed(restored(guidance_scale=3.0), one_by_one[0]) > 0.01
        rescaled = restored(guidance_scale=30.0, guidance_rescale=1.0)
        assert changed(rescaled, restored(guidance_scale=30.0)) > 0.01
        assert changed(restored(guidance_interval=(0.5, 1.0)), one_by_one[0]) > 0.01
        assert changed(restored(conditioning_scale=0.5), one_by_one[0]) > 0.01
        assert changed(restored(conditioning_interval=(0.0, 0.5)), one_by_one[0]) > 0.01
        assert changed(restored(negative_high="sharp"), one_by_one[0]) > 0.01
        assert changed(restored(negative_low="sharp"), one_by_one[0]) > 0.01
        assert changed(restored(positive_words="sharp"), one_by_one[0]) > 0.01
        assert changed(restored(image=other), one_by_one[0]) > 0.5  # other content, other noise
        assert changed(restored(strength=0.5), one_by_one[0]) > 0.01
        assert changed(restored(steps=3), one_by_one[0]) > 0.01
        assert changed(restored(**partly, strength=0.7), restored(**partly)) > 0.01
    assert compiled == []


def test_steps_outside_the_intervals_are_without_guidance_or_conditioning(model):
    def restored(**settings):
        sampling = dataclasses.replace(SAMPLING, **{"guidance_scale": 5.0} | settings)
        return restore(model, IMAGES[:1], CAPTIONS[:1], sampling)

    assert most(restored(guidance_interval=(0.3, 0.6)), restored(guidance_scale=0.0)) <= 1  # measured 0
    assert most(restored(conditioning_interval=(0.0, 0.0)), restored(conditioning_scale=0.0)) == 0
    assert most(restored(guidance_interval=(0.0, 0.5)), restored(guidance_scale=0.0)) > 1
    assert most(restored(guidance_interval=(0.0, 0.5)), restored()) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "unipc", "karras": True},  # uses earlier steps
        # With fractional timesteps.
        pytest.param({"sampler": "euler", "spacing": "linspace"}, marks=pytest.mark.more),
    ],
)
def test_other_samplers_restore(model, one_by_one, settings):
    """tests/diffusion compares the samplers' results with diffusers."""
    sampling = dataclasses.replace(SAMPLING, steps=3, **settings)
    (restored,) = restore(model, IMAGES[:1], CAPTIONS[:1], sampling)
    assert restored.shape == (32, 32, 3) and restored.std() > 5
    assert changed(restored, one_by_one[0]) > 0.01


@pytest.mark.more
def test_guidance_halves_share_everything_before_their_texts(model):
    """One set of latents with two texts per sample gives the same result as repeated latents, images and texts."""
    rng = np.random.default_rng(0)
    latents, high, low = (rng.standard_normal(s, np.float32) for s in [(2, 8, 8, 4), (4, 9, 8), (2, 9, 8)])
    image = rng.random((2, 32, 32, 3), np.float32)

    @nnx.jit
    def predict(unet, controlnet, latents, image, high, low):
        t = jnp.full(len(latents), 17)
        texts = controlnet.project_text(high), controlnet.project_text(low)
        steering = controlnet(latents, t, *texts, controlnet.encode_image(image))
        return unet(latents, t, unet.project_text(high), steering.residuals, steering.mid)

    networks = model.unet, model.controlnet
    once = predict(*networks, latents, image, high, low)
    twice = (np.repeat(array, 2, axis=0) for array in (latents, image))
    apart = predict(*networks, *twice, high, np.repeat(low, 2, axis=0))
    assert once.shape == apart.shape == (4, 8, 8, 4)
    assert error(once, apart) <= 2e-6  # measured: 8.2e-7
    assert error(once[::2], once[1::2]) > 1e-3


def test_without_guidance_the_negative_half_is_not_run(model):
    off = Restorer(model, dataclasses.replace(SAMPLING, guidance_scale=0.0))
    high, low = off._tokens(CAPTIONS[:1])
    assert not off.planned.guided
    assert high.shape == low.shape == (1, 1, 77)
    barely = dataclasses.replace(SAMPLING, guidance_scale=1e-6)
    assert most(off(IMAGES[:1], CAPTIONS[:1]), restore(model, IMAGES[:1], CAPTIONS[:1], barely)) <= 1  # measured 0


@pytest.mark.parametrize("shape", [(5, 9), (1, 1)])
def test_odd_sizes(model, shape):
    """(5, 9) becomes 32 x 57, floored to 32 x 56 for the networks. The latents are 8 x 14, which halve evenly here."""
    image = RNG.integers(0, 256, (*shape, 3), np.uint8)
    seen = []
    restorer = Restorer(model)
    (restored,) = restorer([image], CAPTIONS[:1], on_steps=seen.append)
    assert restored.shape == (4 * shape[0], 4 * shape[1], 3) and restored.dtype == np.uint8
    assert sum(seen) == 2


def test_a_black_and_white_image_comes_back_black_and_white(model, one_by_one):
    [result] = restore(model, [IMAGES[0][..., :1].repeat(3, 2)], CAPTIONS[:1])
    assert (result == result[..., :1]).all() and result.std() > 5
    assert changed(one_by_one[0], one_by_one[0][..., :1]) > 0.5  # an image with colours keeps them


def test_an_image_with_a_nan_result_is_named(model):
    networks = nnx.clone(model.autoencoder)
    networks.decoder.conv_out.bias[...] = jnp.nan
    broken = dataclasses.replace(model, autoencoder=networks)
    with pytest.raises(UserError, match=r"dog\.png: the networks computed NaN"):
        restore(broken, IMAGES[:1], CAPTIONS[:1], names=["dog.png"])


def test_batches_have_one_size_and_are_in_order_of_their_first_images():
    sizes = [(1, 1), (2, 2), (1, 1), (1, 1), (2, 2), (3, 3)]
    assert plan_batches(sizes, 2) == [[0, 2], [1, 4], [3], [5]]
    assert plan_batches([], 2) == []


def test_inputs_that_are_not_images_are_refused(unchecked, model):
    with pytest.raises(ValueError, match="uint8"):
        restore(model, [np.zeros((8, 8, 3), np.float32)], CAPTIONS[:1])
    with pytest.raises(ValueError, match="1 images but 3 captions"):
        restore(model, IMAGES[:1], CAPTIONS)
