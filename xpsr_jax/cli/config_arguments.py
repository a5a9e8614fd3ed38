"""Reads a config, and overrides its fields from the command line."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from xpsr_jax.buckets.paths import with_paths
from xpsr_jax.config import Config, load_config
from xpsr_jax.config.files import config_names


def read_config(name: str, fields: Sequence[str], *, program: str, help: bool = False) -> Config:
    """The Config of a name or file, with fields overridden: ["--optimizer.learning-rate", "1e-4"].

    With `help`, prints all fields and exits. For an unknown field, exits with 2.

    Raises UserError for an invalid file, variant or value.
    """
    config = tyro.cli(
        Config,
        default=load_config(name),
        args=[*fields, *(["--help"] if help else [])],
        prog=f"{program} --config {name}",
        description=f"All fields of {name}. The defaults shown are its values.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return with_paths(config)


def config_options(**options: Any) -> Any:
    """The type for shell completion: --config with the names of configs, these options, and all fields of a config."""
    configs: Any = Literal[tuple(config_names())]
    config, hints = load_config("xpsr"), typing.get_type_hints(Config, include_extras=True)
    defaults = {name: dataclasses.field(default=getattr(config, name)) for name in hints}
    fields = [(name, hints[name], default) for name, default in defaults.items()]
    kind = dataclasses.make_dataclass("Arguments", [("config", configs), *options.items(), *fields], frozen=True)
    return Annotated[kind, tyro.conf.AvoidSubcommands]
