"""Restores low-resolution photographs: `xpsr_jax/cli/restore.py`, which says how it is used."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("restore"))
