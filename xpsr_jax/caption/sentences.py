"""CLIP's text encoder reads 77 tokens: of a longer caption the first sentences are kept."""

import functools
import re

from xpsr_jax.data.tokens import MAX_TOKENS
from xpsr_jax.weights.model_folder import ClipTokenizer, load_tokenizer
from xpsr_jax.weights.sources import SHIPPED_TOKENIZER

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@functools.cache
def _tokenizer() -> ClipTokenizer:
    return load_tokenizer(SHIPPED_TOKENIZER)


@functools.lru_cache(maxsize=64)
def count_tokens(text: str) -> int:
    """How many tokens CLIP makes of a text, beginning and end included. It reads 77.

    Kept for the last few texts: what was shortened is soon counted again.
    """
    return len(_tokenizer()(text, verbose=False)["input_ids"])


def first_sentences(text: str) -> str:
    """As many whole sentences, from the first on, as 77 tokens hold. One too long by itself is left as it is."""
    if count_tokens(text) <= MAX_TOKENS:
        return text
    sentences = _SENTENCE_END.split(text)
    kept = sentences[0]
    for sentence in sentences[1:]:
        longer = f"{kept} {sentence}"
        if count_tokens(longer) > MAX_TOKENS:
            break
        kept = longer
    return kept
