"""Groups of options: the help shows a long dataclass of options as several short lists with titles."""

import dataclasses
import functools
import operator
import re
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeVar, cast, runtime_checkable

import docstring_parser
import tyro

from xpsr_jax.buckets.paths import with_paths

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Groups = Mapping[str, Sequence[str]]
"""Title -> its options, in this order. Without options, the title is a field whose type is a dataclass."""


@runtime_checkable
class Grouped(Protocol[T_co]):
    """A parsed command line: it has a field for each group, and for each option without a group."""

    def flat(self) -> T_co:
        """The options as the original dataclass."""


def grouped(kind: type[T], groups: Groups, **defaults: Any) -> type[Grouped[T]]:
    """Makes a type for `tyro.cli` with the options of a dataclass in groups. Its `flat` gives the dataclass.

    Args:
        kind: the dataclass. The help of an option is the text of its field in the docstring.
        groups: "a.b" is field b of field a, which is a dataclass. Options without a group come before all groups.
        defaults: defaults of fields, instead of their own.
    """
    placed: dict[str, tuple[str, str]] = {}  # path of an option -> name of the group, name of the option in it
    fields: list[tuple[str, Any, Any]] = []
    named = {path.partition(".")[0] for paths in groups.values() for path in paths} | {
        title for title, paths in groups.items() if not paths
    }
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in named:
            fields.append(_option(kind, field.name, defaults))
            placed[field.name] = "", field.name
    for title, paths in groups.items():
        if not paths:
            fields.append(_option(kind, title, defaults))
            placed[title] = "", title
            continue
        options = [_option(kind, path, defaults) for path in paths]
        group = dataclasses.make_dataclass(title, options, frozen=True, kw_only=True, namespace={"__doc__": " "})
        whole = (
            dataclasses.field(default=dataclasses.MISSING)
            if _required(options)
            else dataclasses.field(default_factory=group)
        )
        fields.append((title, Annotated[group, tyro.conf.OmitArgPrefixes], whole))
        placed |= {path: (title, path.rpartition(".")[2]) for path in paths}

    def flat(self: Any) -> T:
        values: dict[str, Any] = {}
        for path, (group, name) in placed.items():
            value = getattr(getattr(self, group) if group else self, name)
            outer, _, inner = path.rpartition(".")
            if outer:
                values.setdefault(outer, {})[inner] = value
            else:
                values[path] = value
        hints = typing.get_type_hints(kind)
        return kind(**{name: hints[name](**v) if isinstance(v, dict) else v for name, v in values.items()})

    text = docstring_parser.parse(kind.__doc__ or "").short_description
    namespace = {"flat": flat, "__doc__": text}
    made = dataclasses.make_dataclass(kind.__name__, fields, frozen=True, kw_only=True, namespace=namespace)
    return cast(type[Grouped[T]], made)


def parse(kind: type[Grouped[T]] | Any, argv: Sequence[str] | None, *, name: str, text: str | None) -> T:
    """Parses a command line; exits with 2 if it is wrong, and with 0 after showing the help.

    Args:
        kind: a type from `grouped` or `subcommands`.
        argv: the words of the command line; None: those of this process.
        name: name of the command.
        text: description of the command, for the help.

    Raises UserError for an invalid path (`as_path`).
    """
    parsed: T = tyro.cli(kind, args=argv, description=_wrapped(text or ""), prog=f"xpsr {name}").flat()
    return with_paths(parsed)


def _wrapped(text: str) -> str:
    """Wraps a docstring to the terminal's width. Indented lines, such as commands, are kept.

    All lines are indented, because tyro would join others. There are no empty lines, because tyro would double them.
    """
    width = max(shutil.get_terminal_size().columns - 2, 40)
    paragraphs = (textwrap.wrap(part, width) if part[:1].strip() else part.split("\n") for part in text.split("\n\n"))
    return "\n".join(textwrap.indent("\n".join(lines).rstrip(), "  ") for lines in paragraphs)


def subcommands(**kinds: Any) -> Any:
    """A type for `tyro.cli` with subcommands. The first word of the command line chooses one of the types."""
    return functools.reduce(operator.or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items()))


def _option(kind: Any, path: str, defaults: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """Name, annotated type and default of an option."""
    outer, _, name = path.rpartition(".")
    markers: tuple[Any, ...] = ()
    if outer:
        hint = typing.get_type_hints(kind, include_extras=True)[outer]
        kind, *found = typing.get_args(hint) or (hint,)
        markers = tuple(each for each in found if each is not tyro.conf.OmitArgPrefixes)
    [field] = [each for each in dataclasses.fields(kind) if each.name == name]
    hint = typing.get_type_hints(kind, include_extras=True)[name]
    own: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        hint, *metadata = typing.get_args(hint)
        own = tuple(metadata)
    default = dataclasses.field(default=field.default, default_factory=field.default_factory)
    if outer in defaults:
        default = dataclasses.field(default=getattr(defaults[outer], name))
    elif path in defaults:
        default = dataclasses.field(default=defaults[path])
    text, said = _without_default(_texts(kind).get(name, ""))
    if field.default is dataclasses.MISSING and tyro.conf.Positional in own:
        said = ""  # For a list of positional arguments, tyro would show that the default is none.
    shown = functools.partial(_shown, text) if said is None else said
    general = tyro.conf.arg(help=text, help_behavior_hint=shown)
    # The field's own settings come last and take precedence.
    return name, Annotated[(hint, general, *own, *markers)], default


def _required(options: Sequence[tuple[str, Any, Any]]) -> bool:
    missing = dataclasses.MISSING
    return any(field.default is missing and field.default_factory is missing for _, _, field in options)


def _shown(text: str, default: str) -> str:
    """A default as shown after an option's text. None is shown only if the text explains it, with "None:"."""
    nothing = default in ("", repr("")) or (default == "None" and "None:" not in text)
    return f"(default: {'none' if nothing else default})"


def _without_default(text: str) -> tuple[str, str | None]:
    """Splits a field's text into the text and its "(default: ...)", if it has one, which explains the default None."""
    if found := re.search(r" ?(\(default: [^()]+\))", text):
        return text[: found.start()] + text[found.end() :], found[1]
    return text, None


def _texts(kind: type) -> dict[str, str]:
    """The text of each field in the docstrings of a dataclass and its bases, with names of options for fields."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            described = docstring_parser.parse(each.__doc__ or "").params
            texts |= {param.arg_name: " ".join((param.description or "").split()) for param in described}
    return {name: _in_words(text, texts) for name, text in texts.items()}


def _in_words(text: str, fields: Mapping[str, str]) -> str:
    def option(match: re.Match[str]) -> str:
        return f"--{match[1].replace('_', '-')}" if match[1] in fields else match[0]

    text = re.sub(r"`(\w+)`", option, text)
    return text if re.match(r"\w+:", text) else text[:1].upper() + text[1:]
