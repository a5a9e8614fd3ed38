"""The first stage before the other networks: in tiles, in batches, alone; and the colours of the result."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests.inference.tiny_model import SAMPLING, tiny_model
from tests.weights.esrgan_files import tensors_of, write
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.inference.first_stage import FirstStage
from xpsr_jax.inference.on_devices import OnDevices
from xpsr_jax.inference.restore import Restorer, restore
from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.parameters import parameters, with_parameters
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.weights.model_folder import load, save
from xpsr_jax.weights.networks import Keys

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RNG = np.random.default_rng(0)
CAPTIONS = [Caption("a red house", "noisy"), Caption("two dogs", "blurry and dark")]
CONFIG = RRDBNetConfig(features=2, blocks=1, growth=2, scale=2)
ALONE = dataclasses.replace(SAMPLING, steps=0, upscale=2)


def random_image(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def plain():
    return tiny_model()


@pytest.fixture(scope="module")
def model(plain):
    """A model with a random first stage. Its weights are so large that distant pixels have an effect."""
    network = RRDBNet(CONFIG, rngs=Keys(jax.random.key(0)))
    larger = {path: 2 * array for path, array in parameters(network).items()}
    return dataclasses.replace(plain, first_stage=with_parameters(network, larger))


def first_stage(model, **options) -> FirstStage:
    return FirstStage(OnDevices(model, batch_size=2, mesh=None), **options)


@pytest.mark.more
def test_tiles_with_a_border_of_the_networks_reach_change_nothing(model):
    """Pixels beyond the reach have no effect, so the inner part of a tile equals the whole picture's."""
    image, reach = random_image(50, 130), CONFIG.reach
    (whole,) = first_stage(model, tile=0)([image])
    tiles = first_stage(model, tile=4 * (reach + 4), border=reach + 4, fade=4)
    (tiled,) = tiles([image])
    assert whole.shape == (100, 260, 3)
    # The lower end of the picture is padded differently if the tile is not as high as the picture.
    rows = slice(0, 2 * (50 - reach))
    np.testing.assert_array_equal(tiled[rows], whole[rows])
    (near,) = first_stage(model, tile=64, border=5, fade=4)([image])
    assert (near[rows] != whole[rows]).any()


def test_without_steps_the_result_is_the_first_stages(model):
    images = [random_image(9, 14), random_image(12, 6)]
    clean = first_stage(model, tile=0)(images)
    assert [picture.shape for picture in clean] == [(18, 28, 3), (24, 12, 3)]
    for restored, expected in zip(restore(model, images, CAPTIONS, ALONE, batch_size=2), clean, strict=True):
        np.testing.assert_array_equal(restored, expected)
    (larger,) = restore(model, images[:1], CAPTIONS[:1], dataclasses.replace(ALONE, upscale=4))
    expected = Image.fromarray(clean[0]).resize((56, 36), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(larger, np.asarray(expected))


def test_the_other_networks_see_the_first_stages_result(model, plain):
    image, settings = random_image(8, 16), dataclasses.replace(SAMPLING, color_fix="none", steps=2)
    (restored,) = restore(model, [image], CAPTIONS[:1], settings)
    (without,) = restore(plain, [image], CAPTIONS[:1], settings)
    assert restored.shape == without.shape and (restored != without).mean() > 0.1


@pytest.mark.soak
def test_the_color_reference(model):
    image = random_image(8, 16) // 4
    settings = dataclasses.replace(SAMPLING, color_fix="adain", steps=1)
    (clean,) = first_stage(model, tile=0)([image])
    for reference, expected in (("lr", image), ("first_stage", clean)):
        chosen = dataclasses.replace(settings, color_reference=reference)
        (restored,) = restore(model, [image], CAPTIONS[:1], chosen)
        # Values below 0 are clipped: measured 4.6. The means of the two references differ by up to 70.
        np.testing.assert_allclose(restored.mean((0, 1)), expected.mean((0, 1)), atol=6)


def test_batches_and_devices_change_nothing(model):
    images = [random_image(8, 16) for _ in range(2)]
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    one_by_one = [restore(model, [image], CAPTIONS[:1], ALONE)[0] for image in images]
    for together in (
        restore(model, images, CAPTIONS, ALONE, mesh=mesh),
        restore(model, images, CAPTIONS, ALONE, batch_size=2),
    ):
        np.testing.assert_array_equal(together, one_by_one)


def test_0_steps_without_a_first_stage_are_refused(plain):
    with pytest.raises(UserError, match="this model has none"):
        Restorer(plain, ALONE)


def test_a_result_that_is_not_finite_is_an_error(model):
    broken = jax.tree.map(lambda array: array * np.float32("nan"), model.first_stage)
    for settings in (ALONE, SAMPLING):
        with pytest.raises(UserError, match="NaN or infinity"):
            restore(dataclasses.replace(model, first_stage=broken), [random_image(8, 8)], CAPTIONS[:1], settings)


def test_a_model_folder_with_a_first_stage_or_another_one(model, tmp_path):
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.first_stage is not None and loaded.first_stage.config == CONFIG
    for path, array in parameters(loaded.first_stage).items():
        np.testing.assert_array_equal(array, parameters(model.first_stage)[path])
    assert load(tmp_path / "model", first_stage="none").first_stage is None
    other = write(tensors_of("x4"), "basicsr", tmp_path)
    for place in (other, tmp_path / "model" / "first_stage"):
        assert load(tmp_path / "model", first_stage=place).first_stage.config.scale == (4 if place == other else 2)
    with pytest.raises(UserError, match="has no first stage"):
        load(tmp_path / "model", first_stage=tmp_path / "model" / "unet")
