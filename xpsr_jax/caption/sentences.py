"""Shortens captions to their first sentences, because CLIP's text encoder reads only 77 tokens."""

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
    """The number of CLIP's tokens of a text, including the start and end tokens. CLIP reads at most 77.

    The results for the last texts are cached, because a shortened text is soon counted again.
    """
    return len(_tokenizer()(text, verbose=False)["input_ids"])


def first_sentences(text: str) -> str:
    """The first sentences of a text, as many as fit into 77 tokens. A first sentence that is too long is unchanged."""
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
