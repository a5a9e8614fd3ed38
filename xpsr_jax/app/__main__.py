"""python -m xpsr_jax.app: `xpsr_jax/cli/app.py`, which says how it is used."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("app"))
