"""Converts captions and prompt words to CLIP's tokens (method §7, §12.4)."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from xpsr_jax.data.tokens import pad_or_cut
from xpsr_jax.errors import UserError


@runtime_checkable
class PromptTokenizer(Protocol):
    """The part of a transformers `CLIPTokenizer` that is used here."""

    model_max_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Mapping[str, list[int]]:
        """Returns a mapping with the text's token ids under "input_ids".

        Args:
            text: a caption or prompt words.
            add_special_tokens: put the start and end tokens around it.
            verbose: log a warning if the text is too long for CLIP.
        """
        ...


def prompt_tokens(
    tokenizer: PromptTokenizer, texts: Sequence[str], *, positive_words: str = ""
) -> Int[np.ndarray, "b n"]:
    """Token ids of texts, each followed by `positive_words`, padded to the tokenizer's length (77 for CLIP), int32.

    The positive words come last, as in the released code. A text that is too long is cut before them. The released
    code lets CLIP's truncation drop the words instead.

    Args:
        tokenizer: a transformers `CLIPTokenizer`.
        positive_words: "" for none.

    Raises:
        UserError: a text is not a string, or the positive words alone are too long.
    """
    room = tokenizer.model_max_length - 2
    words = _ids(tokenizer, [positive_words])[0]
    if len(words) > room:
        raise UserError(
            f"the positive words have {len(words)} tokens, but the text encoder reads at most {room}: shorten them"
        )
    rows = []
    for ids in _ids(tokenizer, texts):
        row = [tokenizer.bos_token_id, *ids, *words, tokenizer.eos_token_id]
        rows.append(pad_or_cut(row, tokenizer.pad_token_id, length=room + 2, kept=len(words) + 1))
    return np.array(rows, np.int32).reshape(len(rows), room + 2)


def _ids(tokenizer: PromptTokenizer, texts: Sequence[str]) -> list[list[int]]:
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"a caption must be text, not {type(text).__name__}: {str(text)[:60]!r}")
    return [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
