"""python -m xpsr_jax.preflight: the same as `xpsr preflight`. See `xpsr_jax/cli/preflight.py`."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("preflight"))
