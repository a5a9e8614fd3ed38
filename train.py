"""Trains XPSR: the same as `xpsr train`. See `xpsr_jax/cli/train.py`."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("train"))
