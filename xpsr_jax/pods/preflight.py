"""Compiles a run's program for a TPU pod, without one, and says whether it fits and what it takes."""

import dataclasses
import time

import jax
from jax.sharding import AbstractMesh, AxisType

from xpsr_jax import sharding
from xpsr_jax.config import Config
from xpsr_jax.models.attention import TPU_KERNEL
from xpsr_jax.pods import chips, compiling, programs, report
from xpsr_jax.pods.report import Report

# What of a config decides what is compiled.
_COMPILED = (
    *("stage", "batch_size", "accumulation", "seed", "steps", "trained", "networks", "loss", "optimizer"),
    *("precision", "mesh", "sampling"),
)


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
    mesh = chips.make_pod_mesh(topology, config.mesh)
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
