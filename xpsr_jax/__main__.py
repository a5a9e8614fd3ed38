"""python -m xpsr_jax: the same as `xpsr`. See `xpsr_jax/cli/commands.py`."""

import sys

from xpsr_jax.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
