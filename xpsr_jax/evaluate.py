"""python -m xpsr_jax.evaluate: `xpsr_jax/cli/evaluate.py`, which says how it is used."""

import sys

from xpsr_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
