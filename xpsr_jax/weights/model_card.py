"""The card of a model folder, README.md: what it is, how it came to be, its settings, scores and licence.

It begins as the Hugging Face hub wants it, with a block of YAML. A README that somebody wrote or changed stays: a card
of ours ends with a hash of itself, and is written anew only while that is right.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.config import Sampling
from xpsr_jax.errors import UserError, printable
from xpsr_jax.files import read_regular, write_text
from xpsr_jax.weights import hub

CARD = "README.md"
_MOST_BYTES = 2**20  # of one that is looked into
_LARGEST = 2**26  # of one that is kept
_END = re.compile(r"\n<!-- written by xpsr_jax, (\w{16}) -->\s*\Z")
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_TAGS = ("super-resolution", "image-restoration", "stable-diffusion", "controlnet", "jax")
# Those of models of this kind, under the hub's names. Others are "other" there, with a name of their own.
_LICENCES = ("creativeml-openrail-m", "openrail", "openrail++", "bigscience-openrail-m", "apache-2.0", "mit")
# What people choose most often; model_index.json has all.
_SETTINGS = ("sampler", "steps", "guidance_scale", "guidance_form", "start", "upscale", "process_size", "color_fix")
_PROMPTS = ("positive_words", "negative_high", "negative_low")


@dataclass(frozen=True)
class Card:
    """What a card says beside what the folder itself tells.

    Attributes:
      name: of the model; "": its folder's.
      base: what the model was made of, names of the hub or of folders.
      licence: of the base, as the hub writes it ("creativeml-openrail-m"); "": it is not known.
      from_nothing: there is no base; all of it was trained from random numbers.
      made: how it came to be, a line each.
      training: how and on what it was trained, a line each.
      scores: of its validation, by the name of the metric.
    """

    name: str = ""
    base: tuple[str, ...] = ()
    licence: str = ""
    from_nothing: bool = False
    made: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


def card_of(folders: Iterable[Path], made: Iterable[str] = ()) -> Card:
    """What the cards of the folders say that a model is made of: the licence, and how it was trained.

    Args:
      folders: later ones first choice.
      made: see `Card`.
    """
    card = Card(made=tuple(map(printable, made)))
    for folder in folders:
        text = _read(folder / CARD) or _read(hub.repository_folder(folder) / CARD)
        if text is None:
            continue
        licence, base = _front(text, "license_name") or _front(text, "license"), _front(text, "base_model")
        found = [public_name(folder)] if hub.names_in(folder) else [base] if base else []
        card = dataclasses.replace(
            card,
            licence=licence or card.licence,
            base=tuple(dict.fromkeys([*card.base, *found])),
            training=_section(text, "Training") or card.training if _is_ours(text) else card.training,
            scores=_scores(text) or card.scores if _is_ours(text) else card.scores,
        )
    return card


def write_card(folder: Path, card: Card, *, final: Path, defaults: Sampling | None, note: str) -> None:
    """Writes the card of a folder that has its other files already.

    Args:
      final: what the folder will be called. If there is such a folder already, with a README that is not ours, that
        one stays.
      defaults: settings to sample with; None: it is a part that cannot sample alone.
      note: what whoever uses it should know.
    """
    if (final / CARD).is_file() and not _is_ours(_read(final / CARD)):
        (folder / CARD).write_bytes(read_regular(final / CARD, max_bytes=_LARGEST))
        return
    name = card.name or final.name
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    text = _text(card, name=name, parts=parts, defaults=defaults, note=note)
    write_text(f"{text}\n<!-- written by xpsr_jax, {_hash(text)} -->\n", folder / CARD)


def public_name(path: Path) -> str:
    """A path in words that may be published: of the hub its name there, else its last two parts."""
    shown = hub.shown(path)
    return shown if shown != str(path) else "/".join(path.parts[-2:]).lstrip("/")


def _text(card: Card, *, name: str, parts: list[str], defaults: Sampling | None, note: str) -> str:
    hub_bases = [base.partition("@")[0].partition(":")[0] for base in card.base if hub.parsed(base) is not None]
    front: dict[str, object] = {"library_name": "xpsr_jax", "pipeline_tag": "image-to-image", "tags": list(_TAGS)}
    if card.licence in _LICENCES:
        front["license"] = card.licence
    elif card.licence:
        front |= {"license": "other", "license_name": card.licence}
    if hub_bases:
        front["base_model"] = hub_bases[0] if len(set(hub_bases)) == 1 else list(dict.fromkeys(hub_bases))
    # JSON is YAML.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", "", f"# {name}", ""]
    if defaults is None:
        lines += [f"A part of an XPSR model for xpsr_jax: {', '.join(parts)}.", ""]
    else:
        lines += [
            "An XPSR model for xpsr_jax. It restores and enlarges photographs with Stable Diffusion, which is steered "
            "by the photograph, a caption of what it shows and a caption of how it is degraded.",
            "",
            "```",
            "xpsr restore PHOTO --output restored --model FOLDER",
            "```",
            "",
        ]
    lines += [note, ""] if note else []
    made = [*card.made, *(f"base: {base}" for base in card.base if f"base: {base}" not in card.made)]
    lines += _listed("Made of", made) if made else []
    lines += _listed("Training", card.training) if card.training else []
    if defaults is not None:
        settings = [f"{field}: {getattr(defaults, field)}" for field in _SETTINGS]
        settings += [f"{field}: {getattr(defaults, field)}" for field in _PROMPTS if getattr(defaults, field)]
        lines += _listed("Settings", [*settings, "all of them are in model_index.json"])
    if card.scores:
        lines += _listed("Scores", [f"{metric}: {value:.4g}" for metric, value in card.scores.items()])
    return "\n".join([*lines, "## Licence", "", _licence(card), ""])


def _licence(card: Card) -> str:
    if card.from_nothing:
        return "This model was trained from nothing. Its licence is for its maker to choose."
    if card.licence:
        return (
            f"The licence of the base is {card.licence}. What is made of it, such as this model, is bound by its terms."
        )
    return (
        "The licence of the base was not found beside its files. Look it up before you pass this model on: what is "
        "made of Stable Diffusion is bound by the terms of its licence (CreativeML Open RAIL-M for version 1.5)."
    )


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {printable(line)}" for line in lines), ""]


def _read(file: Path) -> str | None:
    """The text of a README; None: there is none that can be read."""
    try:
        return read_regular(file, max_bytes=_MOST_BYTES).decode("utf-8", errors="replace") if file.exists() else None
    except UserError:
        return None


def _front(text: str, key: str) -> str:
    """A plain value of the block of YAML that the text begins with; "": there is none."""
    block = _FRONT.match(text)
    found = block and re.search(rf'^{key}:[ \t]*"?([\w./+-]+)"?[ \t]*\r?$', block[1], re.MULTILINE)
    return found[1] if found else ""


def _section(text: str, title: str) -> tuple[str, ...]:
    """The lines of a list under a title."""
    found = re.search(rf"^## {title}\n\n((?:- .*\n)+)", text, re.MULTILINE)
    return tuple(line.removeprefix("- ") for line in found[1].splitlines()) if found else ()


def _scores(text: str) -> dict[str, float]:
    lines = (line.rpartition(": ") for line in _section(text, "Scores"))
    return {name: float(value) for name, _, value in lines}


def _is_ours(text: str | None) -> bool:
    """Whether this module wrote it, and nobody has changed it since."""
    end = _END.search(text or "")
    return end is not None and text is not None and _hash(text[: end.start()]) == end[1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
