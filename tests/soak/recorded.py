"""train.py that also records the samples of each step in RUN/samples.txt, one line per step. Steps may be repeated."""

import json
from collections.abc import Sequence
from pathlib import Path

from xpsr_jax.cli import train
from xpsr_jax.training.log import Log


def main(words: Sequence[str]) -> int:
    """Runs the command `train` with these words. Returns its exit code."""
    add, file = Log.add, Path(words[words.index("--run") + 1]) / "samples.txt"

    def recording(self, step, terms, samples):
        with file.open("a") as lines:
            lines.write(json.dumps([step, samples.tolist()]) + "\n")
        add(self, step, terms, samples)

    Log.add = recording
    return train.main(words)
