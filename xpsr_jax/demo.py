"""python -m xpsr_jax.demo: the same as `xpsr demo`. See `xpsr_jax/cli/demo.py`."""

import sys

from xpsr_jax.cli.start import start

if __name__ == "__main__":
    sys.exit(start("demo"))
