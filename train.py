"""Trains XPSR: `xpsr_jax/cli/train.py`, which says how it is used."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("train"))
