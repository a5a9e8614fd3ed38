"""The shipped autoencoder with a real photograph: tiles are close to the whole, without visible seams."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import xpsr_jax
from tests.inference.seams import seam
from tests.models.golden import VECTORS
from xpsr_jax.inference.tiled_autoencoder import FADE, TiledAutoencoder

TINY = Path(xpsr_jax.__file__).parent / "assets" / "tiny"
TILE = 40


@pytest.fixture(scope="module")
def autoencoder():
    return xpsr_jax.load(TINY, first_stage="none").autoencoder


@pytest.fixture(scope="module")
def photo(autoencoder):
    """48 x 56 latent cells: four tiles. Their inner parts meet at row 24 and column 28."""
    size = 56 * autoencoder.factor, 48 * autoencoder.factor
    with Image.open(VECTORS / "photos" / "leuven.jpg") as image:
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def whole(autoencoder, photo):
    """Moments, latents and image as the autoencoder itself computes them."""
    graph, weights = nnx.split(autoencoder)
    mean, log_variance = jax.jit(lambda weights, x: nnx.merge(graph, weights).moments(x))(
        weights, 2 * jnp.asarray(photo[None], jnp.float32) / 255 - 1
    )
    latents = mean * autoencoder.config.scaling_factor
    image = jax.jit(lambda weights, x: nnx.merge(graph, weights).decode(x))(weights, latents)
    image = np.round(np.clip(np.asarray(image[0]) / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    return np.asarray(mean[0]), np.asarray(log_variance[0]), np.asarray(latents[0]), image


def tiled(autoencoder, tile, together=1):
    return TiledAutoencoder(*nnx.split(autoencoder), autoencoder.factor, tile, together=together)


def rms(a, b):
    return float(np.sqrt(np.mean((np.float64(a) - b) ** 2)))


@pytest.mark.soak
def test_one_piece_is_the_autoencoder_itself(autoencoder, photo, whole):
    mean, log_variance, latents, image = whole
    one = tiled(autoencoder, 0)
    for ours, theirs in zip(one.encode(photo), (mean, log_variance), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())
    decoded, finite = one.decode(latents)
    assert finite and np.abs(np.int32(decoded) - image).max() <= 1


@pytest.mark.more
def test_tiles_are_close_to_the_whole(autoencoder, photo, whole):
    mean, log_variance, latents, image = whole
    ours = tiled(autoencoder, TILE)
    (tiled_mean, tiled_log_variance), (tiled_image, finite) = ours.encode(photo), ours.decode(latents)
    assert finite and tiled_image.shape == image.shape
    assert rms(tiled_mean, mean) < 0.02 * mean.std()  # measured 0.0108
    assert rms(tiled_log_variance, log_variance) < 0.1 * log_variance.std()  # measured 0.056
    assert rms(tiled_image, image) < 1.5  # grey levels; measured 0.62
    assert np.abs(np.int32(tiled_image) - image).max() <= 3  # measured 1
    factor = autoencoder.factor
    for axis, meeting in ((0, factor * 24), (1, factor * 28)):
        at, near = seam(tiled_image, image, axis=axis, meeting=meeting, fade=factor * FADE)
        assert 0.98 < at < 1.02 and 0.98 < near < 1.02  # measured 0.997 and 1.000, 1.005 and 0.998


@pytest.mark.more
def test_several_tiles_at_once_are_the_same(autoencoder, photo):
    one, two = tiled(autoencoder, TILE).encode(photo), tiled(autoencoder, TILE, together=2).encode(photo)
    np.testing.assert_allclose(one[0], two[0], atol=1e-5)  # measured 1.2e-6
