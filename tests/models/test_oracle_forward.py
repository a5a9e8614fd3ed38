"""Every output of the released networks, with the same weights (method §3, §4)."""

import numpy as np
import pytest

from tests.models.golden import assert_close, read, under

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("A", id="timesteps-by-sample", marks=pytest.mark.soak),
        pytest.param("B", id="scaled-residuals"),
        pytest.param("C", id="odd-size", marks=pytest.mark.more),
        pytest.param("D", id="no-low-level-caption", marks=pytest.mark.more),
    ],
)
def test_all_outputs(case, forward, vectors):
    expected = under(f"{case}.out.", read(vectors / "xpsr" / "forward.safetensors"))
    outputs, _ = forward(case)
    assert all(array.dtype == np.float32 for array in outputs.values())
    # Measured: rgb 1.8e-6, down 4.1e-6, latent_pred 3.8e-6 (mid 5.3e-6), mid 4.0e-6, noise_pred 7.1e-6.
    assert_close(outputs, expected, 2e-5)
