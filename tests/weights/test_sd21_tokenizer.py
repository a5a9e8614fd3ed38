"""Stable Diffusion 2.1's published tokenizer folder: captions are padded with "!" (token 0) everywhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import xpsr_jax
from xpsr_jax.data import examples
from xpsr_jax.inference import prompts
from xpsr_jax.weights.model_folder import load_tokenizer, save_tokenizer

START, END = 49406, 49407
LOUD = "a bird! and ! two !!"
# Tokens of OpenCLIP: "!" at the end of a word is 256, "!!" is 748. Neither is 0, the padding.
LOUD_IDS = [START, 320, 3329, 256, 537, 256, 1237, 748, END]


@pytest.fixture(scope="module")
def folder(vectors, tmp_path_factory):
    """tokenizer_config.json and special_tokens_map.json name different paddings; the latter is right."""
    folder = tmp_path_factory.mktemp("sd21") / "tokenizer"
    shutil.copytree(vectors / "sd21" / "tokenizer", folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(Path(xpsr_jax.__file__).parent / "assets" / "tokenizer" / name, folder / name)
    return folder


@pytest.fixture(scope="module", params=["published", "exported"])
def tokenizer(request, folder, tmp_path_factory):
    """The published tokenizer, and the same after an export into a model folder."""
    tokenizer = load_tokenizer(folder)
    if request.param == "published":
        return tokenizer
    exported = tmp_path_factory.mktemp("exported")
    save_tokenizer(tokenizer, exported)
    return load_tokenizer(exported)


@pytest.mark.parametrize("text", ["", "a bird", "nine words " * 60])
def test_rows_are_padded_with_0(text, tokenizer):
    row = examples.tokenize_caption(text, tokenizer)
    np.testing.assert_array_equal(prompts.prompt_tokens(tokenizer, [text]), row[None])
    end = row.tolist().index(END)
    assert (row[0], row.dtype, row.shape) == (START, np.int32, (77,))
    assert row[end + 1 :].tolist() == [0] * (76 - end)
    assert 0 not in row[:end]


def test_an_exclamation_mark_in_a_caption_is_not_padding(tokenizer):
    expected = LOUD_IDS + [0] * (77 - len(LOUD_IDS))
    assert examples.tokenize_caption(LOUD, tokenizer).tolist() == expected
    assert prompts.prompt_tokens(tokenizer, [LOUD])[0].tolist() == expected


def test_positive_words_come_before_the_padding(tokenizer):
    (row,) = prompts.prompt_tokens(tokenizer, ["a bird"], positive_words="sharp!")
    assert row.tolist() == [START, 320, 3329, 8157, 256, END] + [0] * 71
