import jax.numpy as jnp
import numpy as np
import pytest

from xpsr_jax.diffusion import guide, is_guided

POSITIVE, NEGATIVE = jnp.full((1, 1, 1, 2), 3.0), jnp.full((1, 1, 1, 2), 1.0)


def test_both_forms():
    np.testing.assert_allclose(guide(POSITIVE, NEGATIVE, scale=5.5, form="paper"), 3 + 5.5 * 2)
    np.testing.assert_allclose(guide(POSITIVE, NEGATIVE, scale=4.5, form="released"), 1 + 4.5 * 2)


def test_the_papers_scale_is_one_less_than_the_released_ones():
    paper = guide(POSITIVE, NEGATIVE, scale=5.5, form="paper")
    np.testing.assert_array_equal(paper, guide(POSITIVE, NEGATIVE, scale=6.5, form="released"))


@pytest.mark.parametrize(("form", "off"), [("paper", 0.0), ("released", 1.0)])
def test_guidance_is_off_where_it_changes_nothing(form, off):
    assert not is_guided(off, form) and is_guided(off + 0.1, form)
    np.testing.assert_array_equal(guide(POSITIVE, NEGATIVE, scale=off, form=form), POSITIVE)


def test_unknown_form():
    with pytest.raises(ValueError, match="cfg"):
        guide(POSITIVE, NEGATIVE, scale=1.0, form="cfg")
