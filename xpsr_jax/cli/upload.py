"""Uploads a model folder to the Hugging Face hub, with its card.

    xpsr upload models/mine owner/name

This needs a token with write access: run `hf auth login`, or set the variable HF_TOKEN. Unchanged files are not sent
again. Read the folder's README.md first: it becomes the model's page.
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
        folder: Model folder, as xpsr convert or xpsr train writes it.
        name: owner/name on the hub, or owner/name@branch. The repository is created if it does not exist.
        private: Make a newly created repository private.
        message: Commit message.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    private: bool = False
    message: str = "Upload a model of xpsr_jax"


@command(interrupted="interrupted; run the same command again to resume", lower="close other programs")
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error, 130 if interrupted."""
    return upload(parse(arguments(), argv, name="upload", text=__doc__))


def arguments() -> type[Grouped[Arguments]]:
    """The type that a command line is parsed into."""
    return grouped(Arguments, {})


def upload(arguments: Arguments) -> int:
    """Uploads the folder and prints its URL; returns the exit code. Raises UserError."""
    check_options(arguments)
    from xpsr_jax.weights.hub_upload import upload_folder

    url = upload_folder(arguments.folder, arguments.name, private=arguments.private, message=arguments.message)
    say(f"{arguments.folder} was uploaded to {url}")
    return 0
