"""python -m xpsr_jax.app: runs the command in `xpsr_jax/cli/app.py`, which documents its use."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("app"))
