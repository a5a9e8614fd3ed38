"""`xpsr NAME ...`, also `python -m xpsr_jax NAME ...`: one command for everything."""

import difflib
import sys
from collections.abc import Sequence

from xpsr_jax.cli.start import start
from xpsr_jax.version import __version__

# For each command, `xpsr_jax.cli` has a module of this name. Its `main` runs it, its `arguments` is for completion.
COMMANDS = {
    "restore": "restore photographs",
    "caption": "write captions: with LLaVA, with a server, or from measurements",
    "evaluate": "compare restored images with their originals",
    "app": "open a web page that restores one photograph or many",
    "demo": "restore the photograph that ships with the package",
    "convert": "convert weights of any format into a model folder",
    "download": "download a model from the Hugging Face hub, such as Stable Diffusion 1.5",
    "upload": "upload a model folder to the hub",
    "train": "train XPSR on photographs",
    "prepare": "prepare data for training and evaluation",
    "preflight": "check, without a TPU, whether training fits on a TPU pod",
    "doctor": "show versions, devices and free space, for bug reports",
    "completion": "print a completion script for the shell",
}
_HELP = f"""\
usage: xpsr COMMAND [OPTIONS]

XPSR restores photographs with Stable Diffusion. Two captions of each photograph steer it.

commands:
{"".join(f"  {name:11}{what}{chr(10)}" for name, what in COMMANDS.items())}
options:
  -h, --help   show this help; xpsr COMMAND --help shows the help of a command
  --version    show the version

Exit code: 0 done, 1 error (explained in one line), 2 wrong arguments, 130 stopped."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command named by the first word; returns its exit code, or 2 for an unknown command."""
    words = sys.argv[1:] if argv is None else list(argv)
    first, *others = words or [""]
    if first in COMMANDS:
        return start(first, others)
    from xpsr_jax.errors import say  # late, as in `start`

    if first in ("-h", "--help"):
        say(_HELP)
        return 0
    if first == "--version":
        say(f"xpsr_jax {__version__}")
        return 0
    if not first:
        say(_HELP, to_stderr=True)
        return 2
    alike = difflib.get_close_matches(first, COMMANDS, n=1)
    meant = f"did you mean {alike[0]}?" if alike else f"commands are {', '.join(COMMANDS)}"
    say(f"error: unknown command {first!r}; {meant} (xpsr --help)", to_stderr=True)
    return 2
