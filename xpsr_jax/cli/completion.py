"""Prints a script with which a shell completes `xpsr`: commands, options, and values of options.

    xpsr completion bash > ~/.local/share/bash-completion/completions/xpsr
    xpsr completion zsh > ~/.zfunc/_xpsr        # a folder of $fpath
    xpsr completion fish > ~/.config/fish/completions/xpsr.fish

Then open a new shell.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from xpsr_jax.cli.commands import COMMANDS
from xpsr_jax.cli.groups import Grouped, grouped, parse, subcommands
from xpsr_jax.cli.run import command


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        shell: Your shell.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]


@command(interrupted="interrupted", lower="close other programs")
def main(argv: Sequence[str] | None) -> None:
    """Runs the command line; returns the exit code."""
    shell: str = parse(arguments(), argv, name="completion", text=__doc__).shell
    kinds: dict[str, Any] = {name: importlib.import_module(f"xpsr_jax.cli.{name}").arguments() for name in COMMANDS}
    tyro.cli(subcommands(**kinds), args=["--tyro-print-completion", shell], prog="xpsr")


def arguments() -> type[Grouped[Arguments]]:
    """The type that a command line is parsed into."""
    return grouped(Arguments, {})
