"""Pictures that are restored in tiles, and the sizes of the networks' inputs."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.inference.plainly import restored_plainly
from tests.inference.tiny_model import SAMPLING, tiny_model
from xpsr_jax.config import PAPER, RELEASED, Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.inference.restore import Restorer
from xpsr_jax.inference.sizes import network_size
from xpsr_jax.inference.tiling import plan_tiles

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (8, 16, 3), np.uint8) for _ in range(2)]  # 8 x 16 cells
CAPTIONS = [Caption("a red house", "noisy"), Caption("two dogs", "blurry and dark")]
TILED = dataclasses.replace(SAMPLING, tile_size=8, tile_overlap=2)  # three tiles


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tiled(model):
    restorer = Restorer(model, TILED)
    return [restorer([image], [caption])[0] for image, caption in zip(IMAGES, CAPTIONS, strict=True)]


def most(a, b):
    return max(np.abs(np.int32(x) - y).max() for x, y in zip(a, b, strict=True))


@pytest.mark.soak
@pytest.mark.parametrize("start", ["lr", "lr_without_noise"])
def test_one_tile_equals_no_tiles(model, monkeypatch, start):
    """The start, the noise, the steps and the colours are the same. Only the code path differs."""
    sampling = dataclasses.replace(SAMPLING, guidance_interval=(0.0, 0.5), start=start)
    expected = Restorer(model, sampling)(IMAGES[:1], CAPTIONS[:1], seed=3)
    restorer = Restorer(model, sampling)
    monkeypatch.setattr(restorer, "is_large", lambda size: True)
    steps = []
    assert most(restorer(IMAGES[:1], CAPTIONS[:1], seed=3, on_steps=steps.append), expected) <= 1  # measured 1
    assert steps == [1, 1]


@pytest.mark.more
def test_tiles_equal_the_plain_implementation(model, tiled):
    expected = restored_plainly(model, IMAGES[0], CAPTIONS[0], plan_tiles(8, 16, size=8, overlap=2))
    assert most([tiled[0]], [expected]) <= 1  # measured 0


@pytest.mark.more
def test_tiles_differ_from_the_whole(model, tiled):
    """For each tile, the networks see only that tile."""
    whole = Restorer(model, dataclasses.replace(TILED, tile_size=0))(IMAGES[:1], CAPTIONS[:1])
    assert most(whole, tiled[:1]) > 1


@pytest.mark.parametrize(
    ("batch_size", "devices"), [pytest.param(2, 1, marks=pytest.mark.more), pytest.param(1, 8, marks=pytest.mark.soak)]
)
def test_a_result_does_not_depend_on_how_many_tiles_are_computed_at_once(model, tiled, batch_size, devices):
    mesh = jax.make_mesh((devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    restorer = Restorer(model, TILED, batch_size=batch_size, mesh=mesh)
    sizes = [restorer.network_size(*image.shape[:2]) for image in IMAGES]
    assert restorer.plan(sizes) == [[0], [1]]
    backwards = [restorer([image], [caption])[0] for image, caption in zip(IMAGES[::-1], CAPTIONS[::-1], strict=True)]
    assert most(backwards[::-1], tiled) <= 1  # measured 1 for two at once, 0 for eight devices


@pytest.mark.more
def test_a_result_does_not_depend_on_the_order(model, tiled):
    restorer = Restorer(model, TILED)
    backwards = [restorer([image], [caption])[0] for image, caption in zip(IMAGES[::-1], CAPTIONS[::-1], strict=True)]
    assert most(backwards[::-1], tiled) == 0


def test_many_sizes_become_few():
    """A thousand random sizes become few. Common sizes are unchanged."""
    rule = {"upscale": 4, "process_size": 512, "factor": 8}
    sizes = [tuple(map(int, RNG.integers(60, 192, 2))) for _ in range(1000)]
    assert len({network_size(*size, **rule) for size in sizes}) > 300
    assert len({network_size(*size, **rule, multiple=PAPER.size_multiple) for size in sizes}) < 80
    for side in (128, 144, 160, 192, 256, 512):
        assert network_size(side, side, **rule, multiple=PAPER.size_multiple) == (4 * side, 4 * side)
    assert RELEASED.size_multiple == 1


def test_padding_is_cut_off_again(model):
    """7 x 13 is enlarged to 32 x 59, floored to 32 x 56, and padded to 32 x 64."""
    image = RNG.integers(0, 256, (7, 13, 3), np.uint8)
    restorer = Restorer(model)
    assert restorer.network_size(7, 13) == (32, 64)
    (restored,) = restorer([image], CAPTIONS[:1])
    assert restored.shape == (28, 52, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tile_size": 32}, "cannot overlap by 16"),
        ({"tile_size": -1}, "tile_size must be at least 0"),
        ({"vae_tile_size": 16}, "vae_tile_size must be at least 32"),
        ({"size_multiple": 0}, "size_multiple must be at least 1"),
    ],
)
def test_impossible_tiles(fields, message):
    with pytest.raises(UserError, match=message):
        Sampling(**fields)
