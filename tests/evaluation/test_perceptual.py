import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from xpsr_jax.evaluation.perceptual import Dists, Lpips, l2_pool

METRICS = ("lpips_alex", "lpips_vgg", "dists")


@pytest.fixture(scope="module")
def pairs(vectors):
    return load_file(vectors / "metrics.safetensors")


@pytest.fixture(scope="module", params=METRICS)
def metric(request):
    loaded = Dists.load() if request.param == "dists" else Lpips.load(request.param.removeprefix("lpips_"))
    compiled = jax.jit(jax.value_and_grad(lambda b, a, metric: metric(a, b).sum()))
    return request.param, loaded, lambda a, b: compiled(as_batch(b), as_batch(a), loaded)


def as_batch(image):
    return jnp.asarray(image[None], jnp.float32) / 255


def test_value_and_gradient_equal_the_reference_packages(metric, pairs):
    name, _, value_and_gradient = metric
    value, gradient = value_and_gradient(pairs["1.a"], pairs["1.b"])
    expected = pairs[f"1.{name}.gradient"]
    np.testing.assert_allclose(value, pairs[f"1.{name}"], rtol=1e-6)  # measured: 3e-7
    # Measured: 1.2e-6 for LPIPS; 1.8e-4 for DISTS, because a ReLU's input has the other sign (float64: 3e-8).
    assert np.linalg.norm(gradient[0] - expected) / np.linalg.norm(expected) < (1e-3 if name == "dists" else 1e-5)


def test_each_pair_of_a_batch_at_another_odd_size(metric, pairs):
    name, loaded, _ = metric
    a, b = as_batch(pairs["0.a"]), as_batch(pairs["0.b"])
    values = jax.jit(lambda metric, a, b: metric(a, b))(loaded, jnp.concatenate([a, b]), jnp.concatenate([b, b]))
    np.testing.assert_allclose(values, [pairs[f"0.{name}"], 0], rtol=1e-6, atol=1e-6)  # measured: 4e-7, 1.2e-7


def test_equal_images_have_distance_0_and_a_finite_gradient(metric, pairs):
    _, _, value_and_gradient = metric
    for image in (pairs["1.a"], np.zeros_like(pairs["1.a"])):
        value, gradient = value_and_gradient(image, image)
        assert abs(value) < 1e-6  # measured: 0 for LPIPS, 1.2e-7 for DISTS
        assert np.all(np.isfinite(gradient))


def test_invalid_shapes_are_refused(unchecked):
    lpips = Lpips.load("alex")
    with pytest.raises(ValueError, match=r"\(1, 40, 40, 3\) and \(1, 40, 41, 3\)"):
        lpips(jnp.zeros((1, 40, 40, 3)), jnp.zeros((1, 40, 41, 3)))
    with pytest.raises(ValueError, match="30 x 40 pixels is too small: this metric needs at least 31"):
        lpips(jnp.zeros((1, 30, 40, 3)), jnp.zeros((1, 30, 40, 3)))


def test_an_unknown_backbone_is_refused(unchecked):
    with pytest.raises(ValueError, match="no backbone 'squeeze'; known names are alex, vgg"):
        Lpips.load("squeeze")  # type: ignore[arg-type]


def test_l2_pool_smooths_squares():
    x = np.zeros((1, 5, 5, 1), np.float32)
    x[0, 2, 2, 0] = -4.0
    expected = np.full((3, 3), 1e-6)  # sqrt(1e-12), which keeps the gradient finite
    expected[1, 1] = 2.0  # the middle of the window has the weight 1/4: sqrt(16 / 4)
    np.testing.assert_allclose(jax.jit(l2_pool)(x)[0, :, :, 0], expected, rtol=1e-6)
    assert jax.eval_shape(l2_pool, jnp.zeros((1, 7, 10, 2))).shape == (1, 4, 5, 2)
