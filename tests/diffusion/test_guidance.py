import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file

from xpsr_jax.diffusion.guidance import guide, is_guided

POSITIVE, NEGATIVE = jnp.full((1, 1, 1, 2), 3.0), jnp.full((1, 1, 1, 2), 1.0)


def test_both_forms():
    np.testing.assert_allclose(guide(POSITIVE, NEGATIVE, scale=5.5, form="paper"), 3 + 5.5 * 2)
    np.testing.assert_allclose(guide(POSITIVE, NEGATIVE, scale=4.5, form="released"), 1 + 4.5 * 2)


def test_the_papers_scale_is_one_less_than_the_released_scale():
    paper = guide(POSITIVE, NEGATIVE, scale=5.5, form="paper")
    np.testing.assert_array_equal(paper, guide(POSITIVE, NEGATIVE, scale=6.5, form="released"))


@pytest.mark.parametrize(("form", "off"), [("paper", 0.0), ("released", 1.0)])
def test_guidance_is_off_if_it_changes_nothing(form, off):
    assert not is_guided(off, form) and is_guided(off + 0.1, form)
    np.testing.assert_array_equal(guide(POSITIVE, NEGATIVE, scale=off, form=form), POSITIVE)


def test_rescaling_equals_diffusers(vectors):
    stored = {
        name: jnp.moveaxis(array, 1, -1)
        for name, array in load_file(vectors / "samplers.safetensors").items()
        if name in ("start", "rescale.guided", "rescale.out")
    }
    positive, guided = stored["start"], stored["rescale.guided"]
    result = guide(positive, 2 * positive - guided, scale=1.0, form="paper", rescale=0.7)
    np.testing.assert_allclose(result, stored["rescale.out"], atol=1e-6)  # measured 2.4e-7
    # Each image is rescaled separately.
    both = guide(
        *(jnp.concatenate(pair) for pair in ((positive, 3 * positive), (guided, guided))),
        scale=1.0,
        form="paper",
        rescale=1.0,
    )
    np.testing.assert_allclose(np.std(both, axis=(1, 2, 3)), np.std(positive) * np.array([1, 3]), rtol=1e-6)


def test_unknown_form(unchecked):
    with pytest.raises(ValueError, match="cfg"):
        guide(POSITIVE, NEGATIVE, scale=1.0, form="cfg")
