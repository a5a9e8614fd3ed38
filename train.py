"""Trains XPSR: `xpsr_jax/cli/train.py`, which says how it is used."""

import sys

from xpsr_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
