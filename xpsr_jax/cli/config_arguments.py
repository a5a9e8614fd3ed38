"""A config file and the fields that a command line changes in it."""

from collections.abc import Sequence

import tyro

from xpsr_jax.config import Config, load_config


def read_config(name: str, fields: Sequence[str], *, program: str, help: bool = False) -> Config:
    """The Config of a name or a file with fields overridden: ["--optimizer.learning-rate", "1e-4"].

    With `help` it prints every field and exits; for a field that does not exist it exits with 2.

    Raises UserError for a file, a variant or a value that cannot be.
    """
    return tyro.cli(
        Config,
        default=load_config(name),
        args=[*fields, *(["--help"] if help else [])],
        prog=f"{program} --config {name}",
        description=f"Every field of {name}; the defaults are its values.",
        config=(tyro.conf.AvoidSubcommands,),
    )
