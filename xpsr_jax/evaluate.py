"""python -m xpsr_jax.evaluate: `xpsr_jax/cli/evaluate.py`, which says how it is used."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("evaluate"))
