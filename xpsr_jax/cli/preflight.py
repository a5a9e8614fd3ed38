"""Compiles a run's program for a TPU pod, without a TPU, and reports whether it fits and what it costs.

xpsr preflight --config xpsr --topology v5e:4x4
"""

import argparse
import typing
from collections.abc import Sequence
from typing import Any, Literal

from xpsr_jax.cli.config_arguments import config_options, read_config
from xpsr_jax.cli.run import command
from xpsr_jax.errors import UserError, say

Effort = Literal["quick", "default"]
_EXAMPLES = """\
examples:
  xpsr preflight --config xpsr --topology v5e:4x4
  xpsr preflight --config xpsr --topology v5p:2x2x2 --sample
  xpsr preflight --config xpsr --topology v5e:8x8 --batch-size 256 --accumulation 2

Any field of the config can be set, as in xpsr train. No TPU and no weights are needed, only Google's compiler:
pip install "jax[tpu]". A full-size program takes minutes to compile. Reports are cached.
There is no such compiler for GPUs: --gpus 8 only checks that the program can be lowered.
Exit code: 0 it fits, 1 it does not fit or an error, 2 wrong arguments.
"""


@command(
    interrupted="interrupted",
    lower="use --effort quick and close other programs; compiling a full-size program takes several GB",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 if it does not fit or after an error, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="xpsr preflight",
        usage="xpsr preflight --config NAME[:VARIANT] --topology v5e:4x4 [--FIELD VALUE ...]",
        description="Compiles the training step (or the sampling step) for a TPU pod, without a TPU.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="NAME", help="a config or FILE.py, optionally with :VARIANT")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--topology", help="type and arrangement of the chips: v5e:4x4, v5p:2x2x4, v6e:8x8")
    target.add_argument("--gpus", type=int, metavar="N", help="only lower for N GPUs, with plain attention")
    parser.add_argument("--sample", action="store_true", help="compile the sampling step, for --batch-size images")
    parser.add_argument(
        "--effort",
        choices=typing.get_args(Effort),
        default="quick",
        help="effort of the compiler; training uses default, which takes several times as long",
    )
    parser.add_argument("--again", action="store_true", help="compile even if there is a cached report")
    known, fields = parser.parse_known_args(argv)
    config = read_config(known.config, fields, program="xpsr preflight")
    # Imported late, so that help and errors in settings are fast.
    from xpsr_jax.pods import report
    from xpsr_jax.pods.preflight import lower_for_gpus, preflight

    if known.gpus is not None:
        if known.gpus < 1:
            raise UserError(f"--gpus must be at least 1, not {known.gpus}")
        say(lower_for_gpus(config, known.gpus, sample=known.sample))
        return 0
    result = preflight(config, known.topology, sample=known.sample, effort=known.effort, again=known.again)
    say(report.render(result))
    if not result.fits:
        say("\n  ".join(["To use less memory:", *report.suggestions(result, config)]))
    return 0 if result.fits else 1


def arguments() -> Any:
    """The type for shell completion."""
    return config_options(topology=str, gpus=int, sample=bool, effort=Effort, again=bool)
