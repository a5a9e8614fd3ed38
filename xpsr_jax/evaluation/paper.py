"""The paper's tables, as far as they are legible, to stand beside one's own scores.

`xpsr_jax/assets/paper_tables.json` has the numbers, and says where they are from.
"""

import functools
from collections.abc import Mapping
from typing import Any

from xpsr_jax.assets import ASSETS
from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.protocols import MetricName
from xpsr_jax.json_files import read_json

PaperRow = Mapping[MetricName, float | None]
"""Metric -> score; None: that number is not legible."""

_FILE = ASSETS / "paper_tables.json"
# Of the ablations: the rows of XPSR itself.
ITSELF = {3: "sfa", 4: "full", 5: "negative prompt", 6: "stable-diffusion-1.5"}


def set_names() -> tuple[str, ...]:
    """The sets of the paper's Table 1."""
    return tuple(_tables()["table_1"])


def find_set(name: str) -> str:
    """A set's name as the paper writes it, whatever the case of the letters.

    Raises UserError if Table 1 has no such set.
    """
    for known in set_names():
        if known.casefold() == name.casefold():
            return known
    raise UserError(f'the paper has no set "{name}": --set takes {", ".join(set_names())}, or none for no set')


def scores_of_set(name: str) -> dict[str, PaperRow]:
    """Table 1 for one of `set_names`: method -> its scores, in the paper's order."""
    rows: dict[str, PaperRow] = _tables()["table_1"][name]
    return rows


def ablation(table: int) -> dict[str, dict[str, PaperRow]]:
    """One of Tables 3 to 6: variant -> set -> its scores. `ITSELF` names the variant that is XPSR itself."""
    rows: dict[str, dict[str, PaperRow]] = {
        variant: sets for variant, sets in _tables()[f"table_{table}"].items() if variant != "note"
    }
    return rows


@functools.cache
def _tables() -> dict[str, Any]:
    return read_json(_FILE)
