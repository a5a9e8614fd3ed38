"""Golden results of the operators, one real photograph, and a tokenizer whose tokens can be read as words."""

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file


@pytest.fixture(scope="session")
def operators(vectors) -> dict[str, np.ndarray]:
    """Results of the released code's operators, with images as b h w c."""
    tensors = load_file(vectors / "degrade_ops.safetensors")
    return {name: np.ascontiguousarray(t.transpose(0, 2, 3, 1)) if t.ndim == 4 else t for name, t in tensors.items()}


@pytest.fixture(scope="session")
def photo(vectors) -> np.ndarray:
    """256 x 256 RGB, float32 in [0, 1]: brick houses under a grey sky."""
    return cv2.imread(str(vectors / "photos" / "leuven.jpg"), cv2.IMREAD_COLOR_RGB).astype(np.float32) / 255


class WordTokenizer:
    """One token per word, so that tests can turn tokens back into captions."""

    pad_token_id = 1

    def __init__(self):
        self.words = ["<start>", "<end>"]

    def __call__(self, text, **options):
        ids = []
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
            ids.append(self.words.index(word))
        return {"input_ids": [0, *ids, 1]}

    def read(self, ids) -> str:
        return " ".join(self.words[i] for i in ids if i > 1)


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()
