"""Makes a caption from a model's answer: one line of text without the model's reasoning."""

import re
from collections.abc import Mapping
from typing import Any

from xpsr_jax.errors import UserError

_THINKS, _THOUGHT = "<think>", "</think>"
_SENTENCE_ENDS = re.compile(r"[.!?…。！？][\"'”’»)\]*_]*(?:\s|$)")
# Control characters, including NUL and the start of escape sequences.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# Surrogates, which are halves of characters.
_HALF = re.compile("[\ud800-\udfff]")


def clean(answer: str) -> str:
    """Cleans an answer into a caption: one line of text.

    The reasoning of a model (`<think>...</think>`) is removed. Lone surrogates become U+FFFD, and control characters
    become spaces.

    Raises:
      UserError: nothing is left, or the model had not finished its reasoning.
    """
    caption = " ".join(_CONTROL.sub(" ", _HALF.sub("\ufffd", _without_thoughts(answer))).split())
    if not caption:
        raise UserError("the model's answer is empty")
    return caption


def caption_of(answer: Any) -> str:
    """The caption in the answer of an OpenAI-compatible server.

    Raises:
      UserError: the caption is empty, or is cut off within its first sentence.
      KeyError, IndexError, TypeError, AttributeError: the answer has another form.
    """
    choice = answer["choices"][0]
    caption = clean(_joined(choice["message"]["content"]))
    if choice.get("finish_reason") in ("length", "max_tokens") and not _SENTENCE_ENDS.search(caption):
        raise UserError("the answer is cut off within its first sentence; allow more with --max-new-tokens")
    return caption


def _joined(content: Any) -> str:
    """The text of a message that is a string or a list of parts. Parts without text, such as reasoning, are ignored."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TypeError(f"content is {type(content).__name__}")
    texts = [_text_of_part(part) for part in content]
    if texts and not any(isinstance(text, str) for text in texts):
        raise TypeError("content has no text part")
    return " ".join(text for text in texts if text is not None)


def _text_of_part(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") not in ("text", "output_text"):
        return None
    text = part["text"]
    if not isinstance(text, str):
        raise TypeError(f"a part's text is {type(text).__name__}")
    return text


def _without_thoughts(text: str) -> str:
    kept, start = [], 0
    while (thought := text.find(_THINKS, start)) >= 0:
        kept.append(text[start:thought])
        end = text.find(_THOUGHT, thought)
        if end < 0:
            raise UserError("the model had not finished its reasoning; allow more with --max-new-tokens")
        start = end + len(_THOUGHT)
    kept.append(text[start:])
    # Some servers put the opening tag into the prompt, so only the closing tag is in the answer.
    return "".join(kept).rpartition(_THOUGHT)[2]
