import jax.numpy as jnp
import numpy as np

from xpsr_jax.models.layers import timestep_embedding


def test_between_two_timesteps():
    """Euler's sampler uses such timesteps, and they are not rounded."""
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    angles = np.array([[500.0], [499.5]]) * frequencies
    embedded = timestep_embedding(jnp.array([500.0, 499.5]), 8)
    # measured 4e-6
    np.testing.assert_allclose(embedded, np.concatenate([np.cos(angles), np.sin(angles)], axis=1), atol=2e-5)
    np.testing.assert_array_equal(timestep_embedding(jnp.array([500]), 8), embedded[:1])
