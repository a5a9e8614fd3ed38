"""CLIP's 77 tokens."""

from collections.abc import Sequence

MAX_TOKENS = 77


def pad_or_cut(ids: Sequence[int], pad: int, *, length: int = MAX_TOKENS, kept: int = 1) -> list[int]:
    """Token ids of the given length: filled up with `pad`, or cut before the last `kept` of them.

    Not left to the tokenizer: it knows of no words that must stay, and it must not change its settings while another
    thread uses it.
    """
    if len(ids) > length:
        ids = [*ids[: length - kept], *ids[-kept:]]
    return [*ids, *[pad] * (length - len(ids))]
