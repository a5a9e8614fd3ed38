"""Converts weights of any format into a model folder: the same as `xpsr convert`. See `xpsr_jax/cli/convert.py`."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("convert"))
