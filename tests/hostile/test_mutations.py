"""Thousands of randomly damaged files. Each is read correctly or refused by a UserError, without a crash or a hang.

SOAK_FILES sets their number (2000), SOAK_SEED the seed. If PyTorch is installed, they are read with and without it.
"""

import importlib.util
import os

import pytest

from tests.hostile.mutations import SEEDS
from tests.hostile.worker import MEMORY

FILES = int(os.environ.get("SOAK_FILES", "2000"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
SHARES = {"pictures": 0.5, "safetensors": 0.15, "json": 0.1, "captions": 0.1, "msgpack": 0.1, "pickles": 0.05}
_BATCH = 250
TORCH = ["without", *(["with"] if importlib.util.find_spec("torch") else [])]


def read(worker, kind, seed, count, folder, torch="without"):
    words = [kind, seed, count, folder, torch]
    ended = worker.run("tests.hostile.mutations:read", words, cwd=folder, seconds=300)
    assert ended.code == 0, (ended.code, ended.err[-3000:])
    *wrong, refused = ended.out.splitlines()
    assert not wrong, wrong
    assert ended.bytes < MEMORY
    return int(refused.removeprefix("refused "))


@pytest.mark.parametrize("kind", SEEDS)
def test_some(kind, worker, tmp_path):
    assert read(worker, kind, SEED, 20, tmp_path) > 3  # measured 12 to 20


@pytest.mark.soak
@pytest.mark.parametrize("torch", TORCH)
@pytest.mark.parametrize("kind", SEEDS)
def test_many(kind, torch, worker, tmp_path):
    count, refused = round(FILES * SHARES[kind] / len(TORCH)), 0
    for begin in range(0, count, _BATCH):
        refused += read(worker, kind, SEED + begin + 1, min(_BATCH, count - begin), tmp_path, torch)
    print(f"{kind} {torch} PyTorch, seed {SEED}: {refused} of {count} refused, the others read")
