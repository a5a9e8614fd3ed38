from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

import xpsr_jax
from xpsr_jax.errors import UserError
from xpsr_jax.inference.prompts import prompt_tokens

WORDS = "clean, high-resolution, 8k, high quality, clear text."
CAPTION = "A bird's nest on a branch, with three blue eggs in it."


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(Path(xpsr_jax.__file__).parent / "assets" / "tokenizer")


def test_pads_to_77_like_clip(tokenizer):
    ids = prompt_tokens(tokenizer, [CAPTION, ""])
    expected = tokenizer([CAPTION, ""], padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)
    assert ids[1].tolist() == [49406] + [49407] * 76


def test_a_short_caption_and_its_words_are_one_text(tokenizer):
    ids = prompt_tokens(tokenizer, [CAPTION], positive_words=WORDS)
    np.testing.assert_array_equal(ids, prompt_tokens(tokenizer, [f"{CAPTION} {WORDS}"]))


def test_a_long_caption_is_cut_and_the_words_stay(tokenizer):
    long = " ".join([CAPTION] * 20)
    words = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    (ids,) = prompt_tokens(tokenizer, [long], positive_words=WORDS)
    assert len(ids) == 77
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[-1 - len(words) : -1].tolist() == words
    kept = 75 - len(words)
    assert ids[1 : 1 + kept].tolist() == tokenizer(long, add_special_tokens=False, verbose=False)["input_ids"][:kept]
    without = tokenizer([f"{long} {WORDS}"], padding="max_length", max_length=77, truncation=True)["input_ids"][0]
    assert without[-1 - len(words) : -1] != words  # the released code cuts the words


def test_words_that_are_too_long(tokenizer):
    with pytest.raises(UserError, match="positive words have 80 tokens, but the text encoder reads at most 75"):
        prompt_tokens(tokenizer, [CAPTION], positive_words="sharp " * 80)


@pytest.mark.parametrize("caption", [None, 3, ["a"]])
def test_a_caption_must_be_text(unchecked, tokenizer, caption):
    with pytest.raises(UserError, match="must be text, not"):
        prompt_tokens(tokenizer, [caption])
