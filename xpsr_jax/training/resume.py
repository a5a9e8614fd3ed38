"""What a run records of its settings, and which of them may differ when it is resumed."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from xpsr_jax.config import Config
from xpsr_jax.errors import UserError

# Fields that may change: they say how long, how fast, how often, where or how it is shown, not what is trained and on
# what. Anything else would make it another run.
MAY_CHANGE = re.compile(
    r"name|run|steps|note|log_every|checkpoint_every|keep|accumulation|images\.(folder|captions|lr_captions|cache)"
    r"|mesh\..*|validation\..*|sampling\..*|precision\.(attention|remat)|optimizer\.(learning_rate|schedule|warmup)"
)


def record(config: Config, *, photographs: int) -> dict[str, Any]:
    """The config as JSON, and what else must stay the same: the number of photographs, which decides their order."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str)) | {"photographs": photographs}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each field that differs and may. Fields that only one of the records has are passed over.

    Raises:
      UserError: others differ; names them with both values.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    lines = {
        name: f"{name}: was {old[name]!r}, is {new[name]!r}" for name in new if name in old and old[name] != new[name]
    }
    if refused := [line for name, line in lines.items() if not MAY_CHANGE.fullmatch(name)]:
        raise UserError(
            f"this run cannot go on with other settings ({'; '.join(refused)}). "
            "Set them back, or start another run under another --name"
        )
    return list(lines.values())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
