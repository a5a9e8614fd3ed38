"""The jitted step: independent of mesh and accumulation, compiled once, donates its state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny
from xpsr_jax.config import Mesh, Precision


def run(batches, devices, mesh, accumulation=1):
    sizes = Mesh(*mesh, replicated_bytes=0)
    config = dataclasses.replace(tiny.config(), batch_size=16, mesh=sizes, accumulation=accumulation)
    run = tiny.Run(config, devices)
    before = run.state.trained
    terms = [run.advance(batch) for batch in batches]
    return run, terms, before


@pytest.fixture(scope="module")
def single(batches):
    return run(batches, 1, (1, 1))


def largest_difference(terms, expected):
    """The largest relative difference of any term in any step."""
    assert [step.keys() for step in terms] == [step.keys() for step in expected]
    return max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(terms, expected, strict=True) for name in b)


def test_the_step_is_compiled_once_and_donates_its_state(single):
    run, terms, before = single
    assert run.step._cache_size() == 1
    assert int(run.state.step) == 3
    assert all(array.is_deleted() for array in before.values())  # the state was donated
    assert {"loss", "mse", "constraint", "gradient_norm", "rgb_0", "latent_0", "latent_mid"} <= terms[0].keys()
    assert terms[0]["loss"] == pytest.approx(terms[0]["mse"] + 0.05 * terms[0]["constraint"], rel=1e-6)
    assert terms[0]["loss"] != terms[1]["loss"]


def test_a_step_with_nan_and_the_next_one_change_nothing(batches):
    made, _, _ = run(batches[:1], 1, (1, 1))
    before = jax.tree.map(np.asarray, made.state)
    bad = batches[1] | {"hr": np.full_like(batches[1]["hr"], np.nan)}
    assert np.isnan(made.advance(bad)["loss"])
    assert np.isfinite(made.advance(batches[2])["loss"])
    assert int(made.state.step) == ~1
    jax.tree.map(np.testing.assert_array_equal, made.state.before_failure, before)
    assert made.step._cache_size() == 1


@pytest.mark.soak
def test_parameters_do_not_depend_on_mesh_and_accumulation(single, batches):
    """tests/soak/test_meshes.py compares the losses of more steps and on more meshes."""
    one, expected, _ = single
    many, terms, _ = run(batches, 8, (2, 4), 2)
    assert largest_difference(terms, expected) < 2e-6  # measured 2.1e-7
    differences = [
        np.abs(np.asarray(many.state.trained[path]) - np.asarray(array)).max()
        for path, array in one.state.trained.items()
    ]
    assert max(differences) < 5e-6  # 2.4e-7; three steps of 1e-3 were made
    assert many.step._cache_size() == 1

    state = many.state
    for path, array in state.trained.items():
        moments = [leaf[path].sharding for leaf in (state.optimizer[1][0].mu, state.optimizer[1][0].nu)]
        assert {array.sharding, state.average[path].sharding, *moments} == {many.abstract.trained[path].sharding}
        split = not path.endswith(("bias", "scale"))
        shard = array.addressable_shards[0].data
        assert shard.size == array.size // (4 if split else 1)


def test_in_bfloat16_trained_parameters_and_terms_are_float32(batches):
    """Also with recomputation and accumulation. Only types are checked here; the networks' tests check values."""
    precision = Precision(dtype="bfloat16", frozen_dtype="bfloat16", remat=True)
    run = tiny.Run(dataclasses.replace(tiny.config(), batch_size=16, accumulation=2, precision=precision), 8)
    frozen = {path: jax.ShapeDtypeStruct(array.shape, jnp.bfloat16) for path, array in run.frozen.items()}
    batch = {name: array for name, array in batches[0].items() if name != "index"}
    state, terms = jax.eval_shape(run.step, run.abstract, frozen, None, batch)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(run.abstract)
    ]
    assert {leaf.dtype for leaf in terms.values()} == {jnp.dtype(jnp.float32)}
