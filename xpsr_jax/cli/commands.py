"""`xpsr NAME ...`, which is also `python -m xpsr_jax NAME ...`: one command for everything."""

import difflib
import sys
from collections.abc import Sequence

from xpsr_jax.cli.start import start
from xpsr_jax.version import __version__

# Each is the `main` of the module of this name in `xpsr_jax.cli`; its `arguments` is what the shell completes.
COMMANDS = {
    "restore": "restore photographs",
    "caption": "write captions: with LLaVA, with a server, or from measurements",
    "evaluate": "measure restored images against their originals",
    "app": "the web page, for one photograph or many",
    "demo": "restore the photograph that ships with the package",
    "convert": "convert weights of every kind into a model folder",
    "download": "fetch a model of the Hugging Face hub, such as Stable Diffusion 1.5",
    "upload": "put a model folder onto the hub",
    "train": "train XPSR on photographs",
    "prepare": "prepare data for training and evaluation",
    "preflight": "compile a training for a TPU pod without having one: does it fit?",
    "doctor": "say what is installed and what is there, for a report of an error",
    "completion": "let the shell complete all this",
}
_HELP = f"""\
usage: xpsr COMMAND [OPTIONS]

XPSR: restores photographs with Stable Diffusion, steered by two captions of each.

commands:
{"".join(f"  {name:11}{what}{chr(10)}" for name, what in COMMANDS.items())}
options:
  -h, --help   show this help; xpsr COMMAND --help: that of a command
  --version    show the version

Exit code: 0 done, 1 something is wrong (one line says what), 2 wrong arguments, 130 stopped."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names; returns its exit code, 2 if there is no such command."""
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
    meant = f"do you mean {alike[0]}?" if alike else f"there are {', '.join(COMMANDS)}"
    say(f"error: there is no command {first!r}: {meant} (xpsr --help)", to_stderr=True)
    return 2
