"""The fields of `config.Sampling` as options of a command. Their defaults come from a model or a preset."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from xpsr_jax.assets import TINY_MODEL
from xpsr_jax.config import SAMPLING_PRESETS, Sampling
from xpsr_jax.inference.settings import choose_sampling
from xpsr_jax.serialisation import Range
from xpsr_jax.weights import hub
from xpsr_jax.weights.sampling_defaults import load_defaults


@dataclass(frozen=True)
class SamplingOptions(Sampling):
    """How images are restored. The defaults shown are those of the chosen model and preset.

    With another --sampler, the settings of the default sampler are not used.
    """

    # These options have a short name in addition to the name of their field.
    positive_words: Annotated[str, tyro.conf.arg(aliases=["--positive"])] = Sampling.positive_words
    negative_high: Annotated[str, tyro.conf.arg(aliases=["--negative"])] = Sampling.negative_high
    tile_size: Annotated[int, Range(0), tyro.conf.arg(aliases=["--tile"])] = Sampling.tile_size
    vae_tile_size: Annotated[int, Range(0), tyro.conf.arg(aliases=["--vae-tile"])] = Sampling.vae_tile_size

    def chosen(self) -> Sampling:
        """The settings as a plain `Sampling`."""
        return Sampling(**dataclasses.asdict(self))


def default_options(words: Sequence[str]) -> SamplingOptions:
    """The defaults for a command line: its preset's settings, otherwise those of its model.

    Args:
        words: the command line. Only --model, --preset and --sampler are read here.

    Raises UserError if the settings in a model folder cannot be read.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model", nargs="*", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--sampler")
    try:
        named, _ = parser.parse_known_args(list(words))
    except argparse.ArgumentError:  # tyro reports the error later
        named = argparse.Namespace(model=None, preset=None, sampler=None)
    models = named.model or [TINY_MODEL]
    if {"-h", "--help"} & set(words):  # help must not wait for the hub
        models = [model for model in models if hub.hub_name(model) is None]
    defaults, _ = load_defaults([hub.local(model) for model in models])
    preset = named.preset if named.preset in SAMPLING_PRESETS else None
    chosen = choose_sampling(defaults, preset, sampler=named.sampler)
    return SamplingOptions(**dataclasses.asdict(chosen))
