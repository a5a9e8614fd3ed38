"""Puts a model folder onto the Hugging Face hub, with its card.

    xpsr upload models/mine owner/name

It needs a token that may write: `hf auth login`, or the variable HF_TOKEN. What is on the hub already and the same is
not sent again. Look into the folder's README.md before: it becomes the model's page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from xpsr_jax.cli.groups import Grouped, grouped, parse
from xpsr_jax.cli.run import check_options, command
from xpsr_jax.errors import say


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        folder: A model folder, as a conversion or a training writes it.
        name: owner/name on the hub; it is made if it is not there. owner/name@branch for a branch.
        private: If it is made, only its owner sees it.
        message: Of the commit.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    private: bool = False
    message: str = "Upload a model of xpsr_jax"


@command(interrupted="interrupted; the same command goes on from here", lower="close other programs")
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error, 130 if interrupted."""
    return upload(parse(arguments(), argv, name="upload", text=__doc__))


def arguments() -> type[Grouped[Arguments]]:
    """What a command line is parsed to."""
    return grouped(Arguments, {})


def upload(arguments: Arguments) -> int:
    """Sends the folder, and prints where it is; returns the exit code. Raises UserError."""
    check_options(arguments)
    from xpsr_jax.weights.hub_upload import upload_folder

    url = upload_folder(arguments.folder, arguments.name, private=arguments.private, message=arguments.message)
    say(f"{arguments.folder} is at {url}")
    return 0
