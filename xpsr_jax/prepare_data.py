"""python -m xpsr_jax.prepare_data: the same as `xpsr prepare`. See `xpsr_jax/cli/prepare.py`."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("prepare"))
