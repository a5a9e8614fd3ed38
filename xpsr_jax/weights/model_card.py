"""The card of a model folder, README.md: what the model is, how it was made, its settings, scores and licence.

The card begins with a block of YAML, as the Hugging Face hub expects. It ends with a hash of its text. If the hash does
not match, a user has written or changed the README, and it is kept as it is.
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
_MOST_BYTES = 2**20  # limit for a README that is parsed
_LARGEST = 2**26  # limit for a README that is copied
_END = re.compile(r"\n<!-- written by xpsr_jax, (\w{16}) -->\s*\Z")
_FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_TAGS = ("super-resolution", "image-restoration", "stable-diffusion", "controlnet", "jax")
# The usual licences of such models, by the hub's names. For any other, the hub wants "other" and a separate name.
_LICENCES = ("creativeml-openrail-m", "openrail", "openrail++", "bigscience-openrail-m", "apache-2.0", "mit")
# The settings that users change most often. model_index.json has all of them.
_SETTINGS = ("sampler", "steps", "guidance_scale", "guidance_form", "start", "upscale", "process_size", "color_fix")
_PROMPTS = ("positive_words", "negative_high", "negative_low")


@dataclass(frozen=True)
class Card:
    """The content of a card that cannot be read from the folder itself.

    Attributes:
      name: the model's name; "": the folder's name.
      base: the models that it was made from: names on the hub or of folders.
      licence: the base's licence, as the hub writes it ("creativeml-openrail-m"); "": unknown.
      from_nothing: whether the whole model was trained from scratch, without a base.
      made: how it was made, one line per step.
      training: how and on which data it was trained, one line each.
      scores: validation scores, by the name of the metric.
    """

    name: str = ""
    base: tuple[str, ...] = ()
    licence: str = ""
    from_nothing: bool = False
    made: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


def card_of(folders: Iterable[Path], made: Iterable[str] = ()) -> Card:
    """Collects licence, base and training from the cards of the folders that a model is made from.

    Args:
      folders: model folders; later ones take precedence.
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
    """Writes the card of a folder. All other files of the folder must exist already.

    Args:
      final: the final path of the folder. If it exists and its README was written by a user, that README is kept.
      defaults: sampling settings; None: the folder holds a part of a model, which cannot sample alone.
      note: a note for users of the model.
    """
    if (final / CARD).is_file() and not _is_ours(_read(final / CARD)):
        (folder / CARD).write_bytes(read_regular(final / CARD, max_bytes=_LARGEST))
        return
    name = card.name or final.name
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    text = _text(card, name=name, parts=parts, defaults=defaults, note=note)
    write_text(f"{text}\n<!-- written by xpsr_jax, {_hash(text)} -->\n", folder / CARD)


def public_name(path: Path) -> str:
    """A name of the path that can be published: the name on the hub, otherwise the last two parts of the path."""
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
            "An XPSR model for xpsr_jax. It restores and enlarges photographs with Stable Diffusion. The photograph, a "
            "caption of what it shows and a caption of how it is degraded steer the result.",
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
        return "This model was trained from scratch. Its author chooses the licence."
    if card.licence:
        return (
            f"The licence of the base is {card.licence}. Its terms also apply to models made from it, such as this one."
        )
    return (
        "The licence of the base was not found beside its files. Look it up before you share this model: the licence "
        "of Stable Diffusion (CreativeML Open RAIL-M for version 1.5) also applies to models made from it."
    )


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {printable(line)}" for line in lines), ""]


def _read(file: Path) -> str | None:
    """The text of a README; None if it is missing or cannot be read."""
    try:
        return read_regular(file, max_bytes=_MOST_BYTES).decode("utf-8", errors="replace") if file.exists() else None
    except UserError:
        return None


def _front(text: str, key: str) -> str:
    """A plain value from the block of YAML at the beginning of the text; "" if there is none."""
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
    """Whether this module wrote the text, and it has not been changed since."""
    end = _END.search(text or "")
    return end is not None and text is not None and _hash(text[: end.start()]) == end[1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
