"""A config file and the fields that a command line changes in it."""

import dataclasses
import re
import typing
from collections.abc import Sequence

import tyro

from xpsr_jax.config import Config, load_config


def read_config(name: str, fields: Sequence[str], *, program: str, help: bool = False) -> Config:
    """The Config of a file of `configs/` with fields overridden: ["--optimizer.learning-rate", "1e-4"].

    With `help` it prints every field and exits; for a field that does not exist it exits with 2.

    Raises UserError for a file, a variant or a value that cannot be.
    """
    _document_each_field(Config)
    return tyro.cli(
        Config,
        default=load_config(name),
        args=[*fields, *(["--help"] if help else [])],
        prog=f"{program} --config {name}",
        description=f"Every field of {name}; the defaults are its values.",
        config=(tyro.conf.AvoidSubcommands,),
    )


def _document_each_field(kind: type) -> None:
    """Docstrings may say "a, b: what both are". tyro looks for a field under its own name, so each gets the text."""

    def one_by_one(entry: re.Match[str]) -> str:
        indent, names, text = entry.groups()
        return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))

    kind.__doc__ = re.sub(
        r"^( +)(\w+(?:, \w+)+): (.+(?:\n\1 +.+)*)", one_by_one, kind.__doc__ or "", flags=re.MULTILINE
    )
    for hint in typing.get_type_hints(kind).values():
        if dataclasses.is_dataclass(hint):
            _document_each_field(typing.cast(type, hint))
