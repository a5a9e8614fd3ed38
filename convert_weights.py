"""Converts weights of every kind into a model folder: `xpsr_jax/cli/convert.py`, which says how it is used."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("convert"))
