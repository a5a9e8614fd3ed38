"""python -m xpsr_jax.demo: `xpsr_jax/cli/demo.py`, which says how it is used."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("demo"))
