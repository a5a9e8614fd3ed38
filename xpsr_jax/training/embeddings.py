"""Whether text embeddings on disk are what the training's own text encoder would make."""

from collections.abc import Mapping

from xpsr_jax.config import Config
from xpsr_jax.data.embeddings import TextEmbeddings
from xpsr_jax.errors import UserError
from xpsr_jax.training.structure import Structure


def check_embeddings(config: Config, structure: Structure, fingerprints: Mapping[str, str]) -> None:
    """Raises UserError if `data.embeddings` are of another text encoder, or of one that is to be trained.

    Args:
      fingerprints: of the networks that the run begins from (`fingerprints.fingerprints`).
    """
    if config.data.embeddings is None:
        return
    if any(path.startswith("text_encoder.") for path in structure.trained):
        raise UserError("data.embeddings are those of a text encoder that does not change, but --trained names it")
    if TextEmbeddings(config.data.embeddings).text_encoder != fingerprints["text_encoder"]:
        raise UserError(
            f"the embeddings {config.data.embeddings} are not of this base's text encoder. Make them with python -m "
            "xpsr_jax.prepare_data embeddings --model BASE"
        )
