import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from xpsr_jax.inference import color
from xpsr_jax.inference.color import (
    adain,
    fix_color,
    fix_large_color,
    keep_grey,
    low_frequencies,
    truncate_to_uint8,
    wavelet,
)


@pytest.fixture(scope="module")
def stored(vectors):
    return load_file(vectors / "xpsr" / "colorfix.safetensors")


@pytest.fixture(scope="module")
def pair(stored):
    return tuple(jnp.asarray(stored[f"{name}_u8_hwc"][None], jnp.float32) / 255 for name in ("target", "source"))


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_equal_to_the_released_code(stored, pair, method):
    fixed = jax.jit(fix_color, static_argnums=2)(*pair, method)
    expected = stored[f"{method}_float_unclipped"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(fixed, expected, atol=1e-6)  # measured
    assert np.abs(np.int32(truncate_to_uint8(fixed)[0]) - stored[f"{method}_u8_hwc"]).max() == 0


def test_wavelet_parts(stored, pair):
    low = low_frequencies(pair[0])
    np.testing.assert_allclose(low, stored["target_low_freq"].transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_allclose(pair[0] - low, stored["target_high_freq"].transpose(0, 2, 3, 1), atol=1e-6)


def test_adain_gives_the_sources_statistics_at_any_size(pair):
    target, source = pair
    fixed = adain(target, source[:, :20, :17])
    np.testing.assert_allclose(fixed.mean((1, 2)), source[:, :20, :17].mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(wavelet(source, source), source, atol=1e-6)


def test_images_of_a_batch_do_not_mix(pair):
    target, source = pair
    batch = fix_color(jnp.concatenate([target, source]), jnp.concatenate([source, target]), "adain")
    np.testing.assert_allclose(batch[:1], adain(target, source), atol=1e-6)


def test_unknown_method(unchecked, pair):
    with pytest.raises(ValueError, match="histogram"):
        fix_color(*pair, "histogram")


@pytest.mark.parametrize("method", ["adain", "wavelet", "none"])
def test_large_pictures_are_fixed_in_pieces_with_the_same_result(pair, method, monkeypatch):
    monkeypatch.setattr(color, "_PIECE", 80)
    target, source = (np.asarray(truncate_to_uint8(image))[0] for image in pair)
    target, source = (np.tile(image, (3, 3, 1))[:130, :145] for image in (target, source))
    expected = truncate_to_uint8(
        fix_color(*(jnp.asarray(image[None], jnp.float32) / 255 for image in (target, source)), method)
    )[0]
    ours = fix_large_color(target, source, method)
    difference = np.abs(np.int32(ours) - expected)
    assert difference.max() <= (0 if method == "none" else 1)  # measured 0


def test_a_black_and_white_photograph_stays_black_and_white():
    rng = np.random.default_rng(0)
    restored, grey = rng.integers(0, 256, (8, 12, 3), np.uint8), rng.integers(0, 256, (2, 3, 1), np.uint8)
    kept = keep_grey(restored, grey.repeat(3, 2))
    assert (kept == kept[..., :1]).all()
    luma = restored @ np.array([0.299, 0.587, 0.114])
    assert np.abs(kept[..., 0] - luma).max() <= 0.51
    np.testing.assert_array_equal(keep_grey(kept, grey.repeat(3, 2)), kept)
    almost = grey.repeat(3, 2)
    almost[0, 0, 2] ^= 1
    assert keep_grey(restored, almost) is restored
