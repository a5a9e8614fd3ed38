"""python -m xpsr_jax.caption: runs the command in `xpsr_jax/cli/caption.py`, which documents its use."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("caption"))
