"""Finds the captions of each input in a captions file."""

from collections.abc import Sequence
from pathlib import Path

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.images.listing import Input, real


def find_captions(inputs: Sequence[Input], file: Path | None) -> list[Caption | None]:
    """Returns each input's captions, or None if the file has none for it.

    They are looked up by the input's path relative to the folder of the captions file. The path of a symbolic link is
    tried before its target. The last try is the input's path within the folder where it was found.

    Args:
        inputs: the inputs.
        file: captions as JSON lines. None: there are no captions.

    Raises UserError if the file cannot be read.
    """
    if file is None:
        return [None] * len(inputs)
    known, base = read_captions(file), as_path(real(file)).parent
    found = []
    for each in inputs:
        places = (each.path.absolute(), as_path(real(each.path)))
        names = [place.relative_to(base) for place in places if place.is_relative_to(base)]
        found.append(next((known[name.as_posix()] for name in (*names, each.name) if name.as_posix() in known), None))
    return found
