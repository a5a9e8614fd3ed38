"""Compiles a run's program for a TPU pod, without one, and says whether it fits and what it takes.

python -m xpsr_jax.preflight --config configs/xpsr.py --topology v5e:4x4
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType

from xpsr_jax import sharding
from xpsr_jax.config import Config
from xpsr_jax.config_arguments import read_config
from xpsr_jax.errors import UserError
from xpsr_jax.models.attention import TPU_KERNEL
from xpsr_jax.pods import chips, compiling, programs, report
from xpsr_jax.pods.report import Report

_EXAMPLES = """\
examples:
  python -m xpsr_jax.preflight --config configs/xpsr.py --topology v5e:4x4
  python -m xpsr_jax.preflight --config configs/xpsr.py --topology v5p:2x2x2 --sample
  python -m xpsr_jax.preflight --config configs/xpsr.py --topology v5e:8x8 --batch-size 256 --accumulation 2

Any field of the config can be set, as in train.py. Neither a TPU nor weights are needed, but Google's compiler is:
pip install "jax[tpu]". A full-size program takes minutes to compile; a report that was made is kept.
For GPUs there is no such compiler without one: --gpus 8 only shows that the program lowers.
Exit code: 0 it fits, 1 it does not or something is wrong, 2 wrong arguments.
"""

# What of a config decides what is compiled.
_COMPILED = (
    *("stage", "batch_size", "accumulation", "seed", "steps", "trained", "networks", "loss", "optimizer"),
    *("precision", "mesh", "sampling"),
)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m xpsr_jax.preflight",
        usage="python -m xpsr_jax.preflight --config configs/NAME.py[:VARIANT] --topology v5e:4x4 [--FIELD VALUE ...]",
        description="Compiles the training step (or the sampling step) for a TPU pod without having one.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a file of configs/, perhaps :VARIANT")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--topology", help="chips, and how many: v5e:4x4, v5p:2x2x4, v6e:8x8")
    target.add_argument("--gpus", type=int, metavar="N", help="only lower for so many GPUs, with plain attention")
    parser.add_argument("--sample", action="store_true", help="the sampling step, of --batch-size images at once")
    parser.add_argument(
        "--effort",
        choices=("quick", "default"),
        default="quick",
        help="of the compiler; a training does with the default one, which takes several times as long",
    )
    parser.add_argument("--again", action="store_true", help="compile although the report is there from before")
    known, fields = parser.parse_known_args(arguments)
    try:
        config = read_config(known.config, fields, program="xpsr_jax.preflight")
        if known.gpus is not None:
            print(lower_for_gpus(config, known.gpus, sample=known.sample))
            return 0
        result = preflight(config, known.topology, sample=known.sample, effort=known.effort, again=known.again)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report.render(result))
    if not result.fits:
        print("What would make it smaller:", *report.suggestions(result, config), sep="\n  ")
    return 0 if result.fits else 1


def preflight(
    config: Config, topology: str, *, sample: bool = False, effort: compiling.Effort = "quick", again: bool = False
) -> Report:
    """Compiles the training step of a config, or its sampling step, for a topology; or reads what came of it before.

    Args:
      again: compile in any case.

    Raises UserError where that cannot be: no compiler, no such topology, a config that cannot be trained.
    """
    jax.config.update("jax_platforms", "cpu")  # A TPU that jax[tpu] would look for is not there.
    kernel = config.precision.attention
    config = programs.without_files(config, attention=TPU_KERNEL if kernel == "auto" else kernel)
    chips.chip(topology)
    compiled = [repr(getattr(config, name)) for name in _COMPILED] + [repr(config.data.crop_size)]
    kept = compiling.cache_file(topology, sample, effort, compiled)
    if not again and (data := compiling.read_cached(kept)) is not None:
        return report.from_json(data)
    result = _compile(config, topology, sample=sample, effort=effort)
    compiling.write_cached(kept, dataclasses.asdict(result))
    return result


def lower_for_gpus(config: Config, gpus: int, *, sample: bool = False) -> str:
    """Lowers the step for CUDA by `jax.export`, and says what came of it.

    Attention is plain: cuDNN's kernel can only be lowered where it is installed. Nothing is compiled, so memory and
    time stay unknown. Raises UserError for a config that cannot be trained on so many.
    """
    jax.config.update("jax_platforms", "cpu")
    config = programs.without_files(config, attention="plain")
    sizes = sharding.mesh_shape(config.mesh, gpus)
    mesh = AbstractMesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    program = (programs.sampling_step if sample else programs.train_step)(config, mesh)
    exported = program.export("cuda")
    size = len(exported.mlir_module_serialized) / 1e6
    name = "sampling" if sample else "training"
    return f"the {name} step of {config.batch_size} images lowers for {gpus} GPUs (CUDA): {size:.1f} MB of StableHLO"


def _compile(config: Config, topology: str, *, sample: bool, effort: compiling.Effort) -> Report:
    mesh = chips.make_mesh(topology, config.mesh)
    name = "sampling" if sample else "training"
    facts = Report(topology=topology, chips=mesh.size, program=name, images=config.batch_size)
    program = (programs.sampling_step if sample else programs.train_step)(config, mesh)
    lowered, begin = program.lower(), time.perf_counter()
    try:
        compiled, complaints = compiling.compile_for_pod(
            lowered, effort, what=f"compiling the {name} step for {topology} with {effort} effort"
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()[0]
        return dataclasses.replace(facts, shortage=words, compile_seconds=time.perf_counter() - begin)
    return dataclasses.replace(
        facts,
        **report.measure(compiled, chips.chip(topology), rounds=1 if sample else config.accumulation, sampling=sample),
        rematerializations=complaints,
        compile_seconds=time.perf_counter() - begin,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
