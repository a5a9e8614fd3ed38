"""The web page: `python -m xpsr_jax.app`."""
