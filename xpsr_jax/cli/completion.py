"""Prints what lets a shell complete `xpsr`: its commands, their options, the options' choices.

    xpsr completion bash > ~/.local/share/bash-completion/completions/xpsr
    xpsr completion zsh > ~/.zfunc/_xpsr        # a folder of $fpath
    xpsr completion fish > ~/.config/fish/completions/xpsr.fish

The next shell that is opened has it.
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
        shell: Which one.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]


@command(interrupted="interrupted", lower="close other programs")
def main(argv: Sequence[str] | None) -> None:
    """Runs the command line; returns the exit code."""
    shell: str = parse(arguments(), argv, name="completion", text=__doc__).shell
    kinds: dict[str, Any] = {name: importlib.import_module(f"xpsr_jax.cli.{name}").arguments() for name in COMMANDS}
    tyro.cli(subcommands(**kinds), args=["--tyro-print-completion", shell], prog="xpsr")


def arguments() -> type[Grouped[Arguments]]:
    """What a command line is parsed to."""
    return grouped(Arguments, {})
