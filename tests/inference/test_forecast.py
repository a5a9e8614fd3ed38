"""Compares the forecast with what restoring really does."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.inference.tiny_model import SAMPLING, tiny_model
from xpsr_jax.assets import TINY_MODEL
from xpsr_jax.data.captions import Caption
from xpsr_jax.inference import first_stage, large, programs, restore, tiled_autoencoder
from xpsr_jax.inference.forecast import Evaluations, Forecast, TileCounts
from xpsr_jax.inference.live_bytes import live_bytes
from xpsr_jax.inference.restore import Restorer
from xpsr_jax.weights.model_folder import load, save

# Sizes that no other test uses. Programs that were compiled before would not be counted.
SMALL, LARGE = (7, 9), (10, 20)
PARTLY = dataclasses.replace(SAMPLING, steps=4, guidance_interval=(0.0, 0.5), tile_size=12, tile_overlap=3)
KEPT = dataclasses.replace(PARTLY, cache_interval=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    save(tiny_model(), folder)
    return folder


@pytest.fixture(scope="module")
def shapes(folder):
    return load(folder, shapes_only=True)


def test_a_model_of_shapes_has_no_arrays(shapes, folder):
    leaves = jax.tree.leaves(Restorer(shapes, SAMPLING).networks.weights)
    assert {type(leaf) for leaf in leaves} == {jax.ShapeDtypeStruct}
    real = jax.tree.leaves(Restorer(load(folder), SAMPLING).networks.weights)
    assert [(leaf.shape, leaf.dtype) for leaf in leaves] == [(leaf.shape, leaf.dtype) for leaf in real]


@pytest.mark.parametrize(
    ("sampling", "size", "batch_size", "tiles", "evaluations"),
    [
        (SAMPLING, SMALL, 1, (1, 1, 0), (4, 0)),
        (SAMPLING, SMALL, 3, (1, 1, 0), (12, 0)),
        (dataclasses.replace(SAMPLING, guidance_scale=0.0), SMALL, 1, (1, 1, 0), (2, 0)),
        (dataclasses.replace(SAMPLING, strength=0.5), SMALL, 1, (1, 1, 0), (2, 0)),
        (PARTLY, SMALL, 1, (1, 1, 0), (6, 0)),
        (KEPT, SMALL, 1, (1, 1, 0), (3, 3)),
        (PARTLY, LARGE, 1, (6, 1, 0), (36, 0)),
        (KEPT, LARGE, 4, (6, 1, 0), (24, 24)),
    ],
)
def test_evaluations_and_tiles(shapes, sampling, size, batch_size, tiles, evaluations):
    forecast = Forecast(Restorer(shapes, sampling, batch_size=batch_size))
    assert forecast.tiles(size) == TileCounts(*tiles)
    assert forecast.of_batch([size]) == Evaluations(*evaluations)


def test_features_that_exceed_the_hosts_memory_limit_are_not_kept(shapes, monkeypatch):
    monkeypatch.setattr("xpsr_jax.inference.forecast.KEPT_BYTES", 1000)
    assert Forecast(Restorer(shapes, KEPT)).of_batch([LARGE]) == Evaluations(36, 0)


def test_tiles_of_the_autoencoder(shapes):
    sampling = dataclasses.replace(PARTLY, vae_tile_size=32)
    restorer = Restorer(shapes, sampling)
    assert restorer.network_size(30, 50) == (128, 224)  # 32 × 56 cells, in pieces of 32 that overlap by 24
    assert Forecast(restorer).tiles((30, 50)).autoencoder == 4


@pytest.mark.soak
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(("sampling", "size", "batch_size"), [(KEPT, SMALL, 2), (PARTLY, LARGE, 4)])
def test_the_networks_predict_as_often_as_the_forecast_says(folder, sampling, size, batch_size, monkeypatch):
    predicted: list[int] = []
    guided = programs._guided

    def counted(prediction, guidance, scales):
        jax.debug.callback(lambda: predicted.append(prediction.shape[0]))
        return guided(prediction, guidance, scales)

    monkeypatch.setattr(programs, "_guided", counted)
    restorer = Restorer(load(folder), sampling, batch_size=batch_size)
    restorer([np.zeros((*size, 3), np.uint8)], [Caption()])
    jax.effects_barrier()
    assert sum(predicted) == sum(Forecast(restorer).of_batch([size]))


def test_live_bytes_of_a_simple_program():
    """x and y are arguments. sin(x) and its square are live together, then the square and the result of the sum."""

    def program(x, y):
        return (jax.numpy.sin(x) ** 2).sum() + y

    x = jax.ShapeDtypeStruct((1000,), "float32")
    jaxpr = jax.jit(program).trace(x, jax.ShapeDtypeStruct((), "float32")).jaxpr.jaxpr
    assert live_bytes(jaxpr) == 2 * 4000

    def loop(x):
        return jax.lax.fori_loop(0, 3, lambda _, carry: jax.numpy.sin(carry) * 2, x)

    # The loop's result, and in a round: sin, its double and the counter.
    assert live_bytes(jax.jit(loop).trace(x).jaxpr.jaxpr) == 3 * 4000 + 4


@pytest.mark.soak
@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "changes"), [((64, 64), {}), ((96, 160), {"tile_size": 32, "tile_overlap": 8, "vae_tile_size": 32})]
)
def test_expected_memory_is_near_the_compilers_count(size, changes, monkeypatch, capsys):
    """For the shipped model, whole and in tiles, for the program that needs most memory."""
    taken: dict[str, float] = {}

    def measured(name, program):
        def run(*given):
            memory = program.lower(*given).compile().memory_analysis()
            inputs = sum(leaf.nbytes for leaf in jax.tree.leaves(given) if hasattr(leaf, "nbytes")) - sum(
                leaf.nbytes for each in given for leaf in weights_in(each)
            )
            taken[name] = max(taken.get(name, 0), inputs + memory.temp_size_in_bytes + memory.output_size_in_bytes)
            return program(*given)

        return run

    model = load(TINY_MODEL)
    restorer = Restorer(model, dataclasses.replace(model.defaults, **changes))
    assert restorer.networks.first_stage is not None
    weights = jax.tree.leaves((restorer.networks.weights, restorer.networks.first_stage[1]))
    own = {id(leaf) for leaf in weights}

    def weights_in(tree):
        return [leaf for leaf in jax.tree.leaves(tree) if id(leaf) in own]

    programs_in = {
        restore: ("prepare_texts", "prepare_pictures", "run_steps", "finish"),
        large: ("predict_tiles",),
        tiled_autoencoder: ("run_autoencoder",),
        first_stage: ("run_first_stage",),
    }
    for module, names in programs_in.items():
        for name in names:
            monkeypatch.setattr(module, name, measured(name, getattr(module, name)))
    forecast = Forecast(Restorer(load(TINY_MODEL, shapes_only=True), restorer.sampling)).memory(size)
    restorer([np.zeros((*size, 3), np.uint8)], [Caption()])
    ratio = forecast.working / max(taken.values())
    with capsys.disabled():
        print(f"{size}: {forecast.working / 1e6:.1f} MB expected, {max(taken.values()) / 1e6:.1f} MB used")
    assert forecast.weights == sum(leaf.nbytes for leaf in weights)
    assert 0.8 < ratio < 2  # measured 1.19 and 1.94; the networks alone, without a first stage, 0.92
