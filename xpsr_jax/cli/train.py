"""Trains XPSR: xpsr train --config xpsr [--steps 1000 ...]. Run the same command again to resume a run."""

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
  xpsr               XPSR on Stable Diffusion 1.5, trained as in the paper
  xpsr_released      the same, trained like the paper's released code
  ablations:serial   XPSR without one of its parts, and other variants
  sd21               XPSR on Stable Diffusion 2.1, otherwise like xpsr
  sd21:tiny          small networks of that kind with random weights, for a test on any photographs
  few_step           a student with 1, 2 or 4 evaluations, from a trained XPSR
  few_step:tiny      the same, from the small model of the config tiny
  tiny:autoencoder   a small model for two CPU cores, from scratch; stage 1, its autoencoder
  tiny               stage 2, the model itself
  tiny:end_to_end    stage 3, for one evaluation, with losses in pixels
To use your own file, or one from a checkout, give its path: --config configs/xpsr.py

examples:
  xpsr train --config xpsr --help                      all fields of the config
  xpsr train --config xpsr --networks.base MODEL --images.folder PHOTOS
  xpsr train --config tiny --steps 100 --name trial    fields set on the command line

several processes (a pod, SLURM, Kubernetes): start the same command in each. JAX finds the others by itself. Elsewhere,
set these options, with I from 0 to N - 1:
  xpsr train --config xpsr --coordinator HOST:PORT --processes N --process I

The run's folder is runs/NAME. It has checkpoints, log, validation pictures and, at the end, the model in
runs/NAME/model. Ctrl-C or SIGTERM stops the run after the current step and saves it. Run the same command again to
resume.
Exit code: 0 trained, 1 error (explained in one line), 2 wrong arguments, 130 stopped and saved.
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
    parser.add_argument("--config", metavar="NAME", help="a config listed below or FILE.py, optionally with :VARIANT")
    parser.add_argument("-h", "--help", action="store_true", help="with --config: show all fields of that config")
    joining = parser.add_argument_group("several processes")
    joining.add_argument(
        "--distributed",
        choices=typing.get_args(ProcessMode),
        default="auto",
        help="whether to join other processes; auto: if JAX finds a cluster, or the options below are set",
    )
    joining.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first process")
    joining.add_argument("--processes", metavar="N", type=int, help="number of processes")
    joining.add_argument("--process", metavar="I", type=int, help="number of this process, from 0")
    known, fields = parser.parse_known_args(argv)
    if known.config is None:
        parser.print_help(sys.stdout if known.help else sys.stderr)
        return 0 if known.help else 2
    config = read_config(known.config, fields, program="xpsr train", help=known.help)
    # Imported late, so that help and errors in settings are fast.
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
    """The type for shell completion."""
    return config_options(distributed=ProcessMode, coordinator=str, processes=int, process=int)
