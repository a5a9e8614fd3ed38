"""The public functions equal the official packages, in any batch and on any number of devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import xpsr_jax
from tests.marks import marked_more
from xpsr_jax.evaluation.backbones import transform_kernels
from xpsr_jax.evaluation.fidelity import psnr_y, ssim_y
from xpsr_jax.evaluation.metrics import compare
from xpsr_jax.evaluation.pixels import Psnr, Ssim


@pytest.fixture(scope="module")
def pairs(vectors):
    return load_file(vectors / "metrics.safetensors")


@pytest.fixture(scope="module")
def photo_pairs(pairs):
    """128 x 128 pixels of two photographs, each with a version that was reduced to a quarter of its size."""
    return list(zip(pairs["photos.a"], pairs["photos.b"], strict=True))


FUNCTIONS = {
    "dists": xpsr_jax.dists,
    "lpips_alex": xpsr_jax.lpips,
    "lpips_vgg": lambda a, b: xpsr_jax.lpips(a, b, net="vgg"),
}


@pytest.mark.parametrize("name", marked_more(FUNCTIONS, ["dists", "lpips_vgg"]))
def test_official_packages_on_photographs(name, pairs, photo_pairs):
    """Required: 1e-4. Measured: 2e-7."""
    a, b = (np.stack(images) for images in zip(*photo_pairs, strict=True))
    np.testing.assert_allclose(FUNCTIONS[name](a, b), pairs[f"photos.{name}"], rtol=0, atol=2e-6)


def test_a_pair_a_batch_and_floats_are_the_same(photo_pairs):
    a, b = (np.stack(images) for images in zip(*photo_pairs, strict=True))
    for function in (xpsr_jax.psnr, xpsr_jax.ssim):
        together = function(a, b)
        assert together.shape == (len(a),)
        np.testing.assert_allclose(together[0], function(a[0], b[0]), rtol=1e-6)
        np.testing.assert_allclose(together, function(a / np.float32(255), b / np.float32(255)), rtol=1e-6)


def test_each_metric_has_its_own_program():
    """A jitted function is compiled once per structure of its arguments, so each metric needs its own structure."""
    structures = [jax.tree.structure(metric) for metric in (Psnr("y"), Psnr("rgb"), Ssim("y"), Ssim("rgb"))]
    assert all(a != b for a, b in itertools.combinations(structures, 2))


def test_float32_metrics_equal_float64_metrics(photo_pairs):
    for a, b in photo_pairs:
        assert float(xpsr_jax.psnr(a, b)) == pytest.approx(psnr_y(a, b), abs=1e-4)  # 1e-8 is added to the error
        assert float(xpsr_jax.ssim(a, b)) == pytest.approx(ssim_y(a, b), abs=1e-6)  # measured: 1e-7
        assert float(xpsr_jax.psnr(a, a)) == pytest.approx(80, abs=1e-4)
        assert float(xpsr_jax.ssim(a, a)) == 1


def test_channels_by_hand():
    a = np.zeros((1, 12, 12, 3), np.uint8)
    b = a.copy()
    b[..., 1] = 255
    for channels, error in (("y", 128.553), ("y-full", 0.587 * 255), ("rgb", 255 / 3**0.5)):
        np.testing.assert_allclose(xpsr_jax.psnr(a, b, channels=channels), 20 * np.log10(255 / error), rtol=1e-5)


def test_images_are_split_over_devices(photo_pairs):
    """Of eight devices, five have one image each, and three are idle."""
    assert jax.local_device_count() == 8
    image = jnp.asarray(photo_pairs[0][0])
    reference = jnp.stack([jnp.roll(image, i, axis=0) for i in range(5)])
    restored = jnp.stack([jnp.roll(image, i, axis=1) for i in range(5)])
    values = compare((Psnr(), Ssim()), jnp.stack([restored, reference]), reference)
    assert values.shape == (2, 2, 5)
    np.testing.assert_allclose(values[0, 0], xpsr_jax.psnr(restored, reference), rtol=1e-6)
    np.testing.assert_allclose(values[:, 1], [[80] * 5, [1] * 5], rtol=1e-6)


def test_only_suitable_kernels_are_transformed():
    """The tests above compute DISTS and LPIPS (vgg) with transformed kernels."""
    kernels = {f"conv_{i}.kernel": jnp.zeros((3, 3, c, d)) for i, (c, d) in enumerate([(64, 128), (128, 256)])}
    transformed = transform_kernels(kernels | {"conv_2.kernel": jnp.zeros((5, 5, 64, 256))})
    assert {name: array.shape for name, array in transformed.items()} == {
        "conv_0.kernel": (3, 3, 64, 128),
        "conv_1.winograd": (16, 128, 256),
        "conv_2.kernel": (5, 5, 64, 256),
    }


def test_invalid_pairs_are_refused(unchecked, photo_pairs):
    a, b = photo_pairs[0]
    with pytest.raises(ValueError, match=r"\(128, 128, 3\) and \(127, 128, 3\)"):
        xpsr_jax.dists(a, b[1:])
    with pytest.raises(ValueError, match="not int32"):
        xpsr_jax.psnr(a.astype(np.int32), b.astype(np.int32))
    with pytest.raises(ValueError, match="10 x 128 pixels are too few: this metric needs 11 x 11"):
        xpsr_jax.ssim(a[:10], b[:10])
