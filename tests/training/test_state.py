"""The training state: optimizer, learning rates, averages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpsr_jax.config import Config, Optimizer
from xpsr_jax.errors import UserError
from xpsr_jax.training.state import TrainState, learning_rate, make_optimizer
from xpsr_jax.training.step import apply_gradients

PATHS = ("unet.conv.kernel", "unet.norm.scale")


def start(optimizer_settings, steps=10):
    config = Config(optimizer=optimizer_settings, steps=steps)
    optimizer = make_optimizer(config, PATHS)
    trained = {path: jnp.array([0.5, -2.0, 3.0]) for path in PATHS}
    return optimizer, TrainState(jnp.int32(0), trained, optimizer.init(trained), dict(trained))


def test_average_is_exact():
    """Compared with float64, with the documented increase of the decay."""
    optimizer, state = start(Optimizer(learning_rate=0.1, ema=0.9))
    expected = {path: np.asarray(array, np.float64) for path, array in state.trained.items()}
    step = jax.jit(lambda state, gradients: apply_gradients(state, gradients, optimizer, ema=0.9))
    rng = np.random.default_rng(0)
    for i in range(200):
        state = step(state, {path: jnp.asarray(rng.standard_normal(3), jnp.float32) for path in PATHS})
        keep = min(0.9, (1 + i) / (10 + i))
        expected = {path: keep * expected[path] + (1 - keep) * np.asarray(state.trained[path]) for path in PATHS}
    assert int(state.step) == 200
    for path in PATHS:
        np.testing.assert_allclose(state.average[path], expected[path], rtol=1e-6)  # measured 2.4e-7
    assert state.result is state.average
    assert dataclasses.replace(state, average=None).result is state.trained


def test_weight_decay_only_for_matching_parameters():
    optimizer, state = start(
        Optimizer(learning_rate=0.1, weight_decay=0.5, decayed=((r".*\.scale", False), (".*", True)))
    )
    after = apply_gradients(state, {path: jnp.zeros(3) for path in PATHS}, optimizer, ema=None).trained
    np.testing.assert_allclose(after["unet.conv.kernel"], 0.95 * state.trained["unet.conv.kernel"], rtol=1e-6)
    np.testing.assert_array_equal(after["unet.norm.scale"], state.trained["unet.norm.scale"])


def test_gradients_are_clipped_by_their_global_norm():
    optimizer, state = start(Optimizer(clip=1.0))
    gradients = {PATHS[0]: jnp.array([3.0, 0, 0]), PATHS[1]: jnp.array([0, 4.0, 0])}
    moments = apply_gradients(state, gradients, optimizer, ema=None).optimizer
    first = next(
        leaf.mu for leaf in jax.tree.leaves(moments, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu")
    )
    np.testing.assert_allclose(first[PATHS[0]], [0.06, 0, 0], rtol=1e-6)  # 0.1 * 3 / 5
    np.testing.assert_allclose(first[PATHS[1]], [0, 0.08, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        (Optimizer(learning_rate=1.0), {0: 1.0, 99: 1.0, 1000: 1.0}),
        (Optimizer(learning_rate=1.0, warmup=10), {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
        (Optimizer(learning_rate=1.0, schedule="cosine"), {0: 1.0, 50: 0.51, 100: 0.02, 1000: 0.02}),
        (Optimizer(learning_rate=1.0, schedule="cosine", warmup=10), {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.51, 100: 0.02}),
    ],
)
def test_learning_rates(settings, rates):
    schedule = learning_rate(settings, steps=100)
    assert {step: pytest.approx(float(schedule(step)), abs=1e-6) for step in rates} == rates


def test_the_state_has_one_structure_for_all_schedules():
    """The schedule may therefore change when a run is resumed."""
    structures = {
        str(jax.tree.structure(start(Optimizer(schedule=schedule, warmup=warmup))[1]))
        for schedule in ("constant", "cosine")
        for warmup in (0, 5)
    }
    assert len(structures) == 1


def test_a_decay_pattern_without_a_match_is_an_error():
    with pytest.raises(
        UserError, match=r"'unet\\\\.konv.*' matches no parameter; parameters have names like 'unet.conv.kernel'"
    ):
        make_optimizer(Config(optimizer=Optimizer(decayed=((r"unet\.konv.*", True),))), PATHS)
