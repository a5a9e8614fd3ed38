"""The first stage in training: its pictures replace the LR images before any loss is computed."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xpsr_jax.config import Config
from xpsr_jax.data.offline_pairs import FIRST_STAGE_RECORD
from xpsr_jax.errors import UserError
from xpsr_jax.json_files import read_json
from xpsr_jax.training.structure import Bundle, Structure


def with_first_stage(networks: Bundle, batch: Mapping[str, Array]) -> Mapping[str, Array]:
    """The batch with the first stage's pictures as `lr`, rounded to 8 bits, as the other networks see them in sampling.

    The pictures are computed from `small`, the LR images at their own size in [0, 1]. A batch without `small` is
    returned unchanged. A clean input (marked in `clean`) skips the first stage.
    """
    if "small" not in batch:
        return batch
    rest = {name: array for name, array in batch.items() if name not in ("small", "clean")}
    picture = jnp.round(jnp.clip(networks.first_stage(batch["small"]), 0, 1) * 255) / 255
    lr = jnp.where(batch["clean"][:, None, None, None], batch["lr"], picture)
    return rest | {"lr": jax.lax.stop_gradient(lr)}


def check_stored_pictures(config: Config, structure: Structure, fingerprints: Mapping[str, str]) -> None:
    """Raises UserError if the stored pictures (`data.first_stage`) were not made by the model's first stage.

    Args:
      fingerprints: those of the networks that the run starts from (`fingerprints.fingerprints`).
    """
    if structure.first_stage is None or config.data.first_stage != "stored":
        return
    folders = [folder for _, folder in config.images.mixture] or [config.images.folder]
    for folder in folders:
        if _stored(folder) != fingerprints["first_stage"]:
            raise UserError(
                f"{folder} has no pictures made by the first stage {structure.first_stage}. Make pairs with xpsr "
                "prepare pairs --first-stage, or let training compute the pictures: --data.first-stage computed"
            )


def _stored(folder: Path) -> str | None:
    """The fingerprint of the first stage that made the pictures of these pairs, or of this part of them."""
    for place in (folder, folder.parent):
        if (place / FIRST_STAGE_RECORD).is_file():
            return str(read_json(place / FIRST_STAGE_RECORD).get("first_stage"))
    return None
