"""python -m xpsr_jax.caption: `xpsr_jax/cli/caption.py`, which says how it is used."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("caption"))
