"""Trains XPSR: xpsr train --config xpsr [--steps 1000 ...]. The same command resumes a stopped run."""

import argparse
import sys
import typing
from collections.abc import Sequence
from typing import Any

from xpsr_jax.cli.config_arguments import config_options, read_config
from xpsr_jax.cli.run import command
from xpsr_jax.cli.start import INTERRUPTED
from xpsr_jax.config import ProcessMode
from xpsr_jax.errors import say

_EXAMPLES = """\
configs:
  xpsr               Stable Diffusion 1.5, trained as the paper says
  xpsr_released      the same, trained as the paper's released code does
  ablations:serial   XPSR without one of its parts, and other variants
  sd21               XPSR on Stable Diffusion 2.1, otherwise as xpsr
  sd21:tiny          networks of its kind, small and at random: a trial on any photographs
  few_step           a student of 1, 2 or 4 evaluations, of a trained XPSR
  few_step:tiny      the same of the small model that ships with the package
  tiny:autoencoder   a small model for two CPU cores, from nothing: its first stage
  tiny               its second, the model itself
  tiny:decoder       its third: the decoder once more
A file of your own, or one of a checkout, is named by its path: --config configs/xpsr.py

examples:
  xpsr train --config xpsr --help                      every field of the config
  xpsr train --config xpsr --networks.base MODEL --images.folder PHOTOS
  xpsr train --config tiny --steps 100 --name trial    fields set on the command line

several processes (a pod, SLURM, Kubernetes): start the same command in each. JAX finds the others by itself; where it
does not:
  xpsr train --config xpsr --coordinator HOST:PORT --processes N --process I     I from 0 to N - 1

The run is in runs/NAME: its checkpoints, log, validation pictures and, at the end, the model in runs/NAME/model.
Ctrl-C or SIGTERM stops it after the step at hand and saves it; the same command goes on from there.
Exit code: 0 trained, 1 something is wrong (one line says what), 2 wrong arguments, 130 stopped and saved.
"""


@command(
    interrupted="interrupted; the last checkpoint is kept",
    lower="lower --batch-size, or raise --accumulation; --data.crop-size and --precision.dtype bfloat16 help as well",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error, 2 after wrong arguments, 130 if stopped."""
    parser = argparse.ArgumentParser(
        prog="xpsr train",
        usage="xpsr train --config NAME[:VARIANT] [--FIELD VALUE ...] [--help]",
        description="Trains XPSR and exports the model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="NAME", help="a config of below, or FILE.py; and perhaps :VARIANT")
    parser.add_argument("-h", "--help", action="store_true", help="with --config: every field of that config")
    joining = parser.add_argument_group("several processes")
    joining.add_argument(
        "--distributed",
        choices=typing.get_args(ProcessMode),
        default="auto",
        help="whether to join with others; auto: if JAX finds a cluster, or the flags below name one",
    )
    joining.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
    joining.add_argument("--processes", metavar="N", type=int, help="how many there are")
    joining.add_argument("--process", metavar="I", type=int, help="which one this is, from 0")
    known, fields = parser.parse_known_args(argv)
    if known.config is None:
        parser.print_help(sys.stdout if known.help else sys.stderr)
        return 0 if known.help else 2
    config = read_config(known.config, fields, program="xpsr train", help=known.help)
    # Imported late: help and a wrong setting need not wait for it.
    from xpsr_jax import distributed
    from xpsr_jax.inference.compilation import use_compilation_cache, use_tpu_flags

    use_compilation_cache()
    use_tpu_flags()
    distributed.start(
        known.distributed, coordinator=known.coordinator, processes=known.processes, process=known.process
    )
    from xpsr_jax.training.loop import train

    folder = train(config)
    if folder is None:
        return INTERRUPTED
    if distributed.is_first():
        say(f"model: {folder}")
    return 0


def arguments() -> Any:
    """What the shell completes."""
    return config_options(distributed=ProcessMode, coordinator=str, processes=int, process=int)
