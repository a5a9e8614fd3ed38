"""python -m xpsr_jax.evaluate: the same as `xpsr evaluate`. See `xpsr_jax/cli/evaluate.py`."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("evaluate"))
