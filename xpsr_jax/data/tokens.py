"""CLIP's 77 tokens."""

from collections.abc import Sequence

MAX_TOKENS = 77


def pad_or_cut(ids: Sequence[int], pad: int, *, length: int = MAX_TOKENS, kept: int = 1) -> list[int]:
    """Token ids of the given length: padded with `pad`, or cut so that the last `kept` ids stay.

    The tokenizer is not used for this. It cannot keep the last words, and its settings must not change while another
    thread uses it.
    """
    if len(ids) > length:
        ids = [*ids[: length - kept], *ids[-kept:]]
    return [*ids, *[pad] * (length - len(ids))]
