"""Restores low-resolution photographs: the same as `xpsr restore`. See `xpsr_jax/cli/restore.py`."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("restore"))
