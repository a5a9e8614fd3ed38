"""Cached features: equal to the plain implementation, without new compilations, in batches, shards and tiles."""

import dataclasses
import logging
from typing import get_args

import jax
import numpy as np
import pytest

from tests.compilations import compilations
from tests.inference.plainly import restored_plainly
from tests.inference.tiny_model import SAMPLING, tiny_model
from tests.marks import marked_long
from xpsr_jax.config import SAMPLING_PRESETS, Sampling
from xpsr_jax.data.captions import Caption
from xpsr_jax.diffusion.choices import SamplerName
from xpsr_jax.errors import UserError
from xpsr_jax.inference import large
from xpsr_jax.inference.plan import Run, plan_runs
from xpsr_jax.inference.restore import Restorer, restore
from xpsr_jax.inference.tiling import plan_tiles

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SAMPLERS = get_args(SamplerName)
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (8, 16, 3), np.uint8) for _ in range(3)]
CAPTIONS = [Caption("a red house", "noisy"), Caption("two dogs", "blurry and dark"), Caption("", "")]
CACHED = dataclasses.replace(SAMPLING, steps=4, cache_interval=3, cache_levels=1)
TILED = dataclasses.replace(CACHED, tile_size=8, tile_overlap=2)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def one_by_one(model):
    return restore(model, IMAGES, CAPTIONS, CACHED)


def most(a, b):
    return max(np.abs(np.int32(x) - y).max() for x, y in zip(a, b, strict=True))


def test_whole_steps_come_at_intervals_and_when_guidance_changes():
    sampling = Sampling(steps=10, cache_interval=3, guidance_interval=(0.0, 0.5))
    runs = list(plan_runs(sampling, at_most=1))
    assert runs == [
        Run(0, 1, True, True, "kept"),
        Run(1, 3, True, True, "used"),
        Run(3, 4, True, True, "kept"),
        Run(4, 5, True, True, "used"),
        Run(5, 6, False, True, "kept"),
        Run(6, 8, False, True, "used"),
        Run(8, 9, False, True, "kept"),
        Run(9, 10, False, True, "used"),
    ]


def test_the_preset_runs_a_third_of_its_steps_whole():
    runs = list(plan_runs(SAMPLING_PRESETS["fast"], at_most=20))
    steps = {kind: sum(run.last - run.first for run in runs if run.features == kind) for kind in ("kept", "used")}
    assert steps == {"kept": 7, "used": 13}
    assert SAMPLING_PRESETS["fast"].cache_levels == 2


@pytest.mark.more
def test_equals_the_plain_implementation(model, one_by_one):
    expected = restored_plainly(model, IMAGES[0], CAPTIONS[0], sampling=CACHED)
    assert most([one_by_one[0]], [expected]) <= 1
    whole = restored_plainly(model, IMAGES[0], CAPTIONS[0], sampling=dataclasses.replace(CACHED, cache_interval=1))
    assert most([one_by_one[0]], [whole]) > 1


@pytest.mark.soak
@pytest.mark.parametrize("sampler", marked_long(SAMPLERS, set(SAMPLERS) - {"ddpm", "unipc", "consistency"}))
def test_every_sampler_with_guidance_in_part_of_the_steps(model, sampler):
    sampling = dataclasses.replace(CACHED, sampler=sampler, steps=6, guidance_interval=(0.0, 0.5))
    expected = restored_plainly(model, IMAGES[0], CAPTIONS[0], sampling=sampling)
    assert most(restore(model, IMAGES[:1], CAPTIONS[:1], sampling), [expected]) <= 1
    with compilations() as compiled:
        for changed in ({"steps": 8}, {"guidance_scale": 3.0}, {"guidance_interval": (0.4, 1.0)}):
            restore(model, IMAGES[:1], CAPTIONS[:1], dataclasses.replace(sampling, **changed), seed=1)
    assert compiled == []


@pytest.mark.more
def test_two_programs_serve_all_numbers(model, one_by_one):
    def restored(**settings):
        return restore(model, IMAGES[:1], CAPTIONS[:1], dataclasses.replace(CACHED, **settings))[0]

    with compilations() as compiled:
        for settings in ({"steps": 7}, {"guidance_scale": 3.0}, {"cache_interval": 2}, {"conditioning_scale": 0.5}):
            assert np.mean(restored(**settings) != one_by_one[0]) > 0.01
        other_seed = restore(model, IMAGES[:1], CAPTIONS[:1], CACHED, seed=1)
        assert np.mean(other_seed[0] != one_by_one[0]) > 0.01
    assert compiled == []


@pytest.mark.soak
def test_a_result_does_not_depend_on_batches_and_devices(model, one_by_one):
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    assert most(restore(model, IMAGES, CAPTIONS, CACHED, mesh=mesh), one_by_one) <= 1


@pytest.mark.more
def test_tiles_equal_the_plain_implementation(model):
    expected = restored_plainly(model, IMAGES[0], CAPTIONS[0], plan_tiles(8, 16, size=8, overlap=2), sampling=TILED)
    (restored,) = Restorer(model, TILED, batch_size=2)(IMAGES[:1], CAPTIONS[:1])
    assert most([restored], [expected]) <= 1


@pytest.mark.more
def test_above_the_memory_limit_nothing_is_kept_and_a_warning_is_logged(model, monkeypatch, caplog):
    monkeypatch.setattr(large, "KEPT_BYTES", 1000)
    with caplog.at_level(logging.WARNING):
        (restored,) = Restorer(model, TILED, batch_size=2)(IMAGES[:1], CAPTIONS[:1])
    assert "Every step computes all layers" in caplog.text and caplog.text.count("GiB") == 2
    whole = Restorer(model, dataclasses.replace(TILED, cache_interval=1), batch_size=2)
    assert most([restored], whole(IMAGES[:1], CAPTIONS[:1])) <= 1


def test_too_many_cache_levels_are_refused(model):
    with pytest.raises(UserError, match="cache_levels can be at most 2 with this UNet, not 3"):
        Restorer(model, dataclasses.replace(CACHED, cache_levels=3))
    with pytest.raises(UserError, match="cache_interval must be at least 1"):
        Sampling(cache_interval=0)
