"""python -m xpsr_jax.prepare_data: `xpsr_jax/cli/prepare.py`, which says how it is used."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("prepare"))
