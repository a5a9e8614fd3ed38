"""Compiles a run's program for a TPU pod without having one. Reports whether it fits, and its memory and time."""

import dataclasses
import time

import jax
from jax.sharding import AbstractMesh, AxisType

from xpsr_jax import sharding
from xpsr_jax.config import Config
from xpsr_jax.models.attention import TPU_KERNEL
from xpsr_jax.pods import chips, compiling, programs, report
from xpsr_jax.pods.report import Report
from xpsr_jax.training.plan import example_shapes
from xpsr_jax.training.structure import make_structure
from xpsr_jax.weights.networks import FIRST_STAGE, read_config

# Fields of a config that do not change the compiled program. A change of any other field, also a new one, needs a new
# report.
_NOT_COMPILED = (
    *("name", "run", "images", "data", "validation", "note"),
    *("log_every", "checkpoint_every", "keep", "profile", "wandb"),
)


def preflight(
    config: Config, topology: str, *, sample: bool = False, effort: compiling.Effort = "quick", again: bool = False
) -> Report:
    """Compiles the training step (or the sampling step) of a config for a topology, or reads a stored report.

    Args:
      again: compile even if a report is stored.

    Raises UserError if the compiler is missing, the topology does not exist, or the config cannot be trained.
    """
    jax.config.update("jax_platforms", "cpu")  # Otherwise jax[tpu] would look for a TPU.
    kernel = config.precision.attention
    config = programs.without_files(config, attention=TPU_KERNEL if kernel == "auto" else kernel)
    chips.chip(topology)
    kept = compiling.cache_file(topology, sample, effort, compiled_settings(config))
    if not again and (data := compiling.read_cached(kept)) is not None:
        return report.from_json(data)
    result = _compile(config, topology, sample=sample, effort=effort)
    compiling.write_cached(kept, dataclasses.asdict(result))
    return result


def compiled_settings(config: Config) -> dict[str, str]:
    """All settings that affect the compiled program, as text. Configs with equal text have the same programs.

    For the data these are the shapes of the step's inputs. For the networks they are the current configurations in the
    base's folders.
    """
    settings = {
        field.name: repr(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in _NOT_COMPILED
    }
    structure = make_structure(config)
    inputs = example_shapes(config, structure)
    return settings | {
        "networks": repr(structure.networks),
        "data": repr(inputs),
        "crop_size": str(config.data.crop_size),
        "first_stage": repr(structure.first_stage and read_config(FIRST_STAGE, structure.first_stage)),
    }


def lower_for_gpus(config: Config, gpus: int, *, sample: bool = False) -> str:
    """Lowers the step for CUDA with `jax.export`, and returns a report as text.

    Attention is "plain", because cuDNN's kernel can be lowered only where cuDNN is installed. Nothing is compiled, so
    memory and time are unknown. Raises UserError for a config that cannot be trained on this number of GPUs.
    """
    jax.config.update("jax_platforms", "cpu")
    config = programs.without_files(config, attention="plain")
    sizes = sharding.mesh_shape(config.mesh, gpus)
    mesh = AbstractMesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    program = (programs.sampling_step if sample else programs.train_step)(config, mesh)
    lowered = {f"the {'sampling' if sample else 'training'} step": program}
    if sample and (before := programs.first_stage(config, mesh)):
        lowered = {"the first stage": before} | lowered
    sizes_of = {name: len(each.export("cuda").mlir_module_serialized) / 1e6 for name, each in lowered.items()}
    return "\n".join(
        f"{name} of {config.batch_size} images lowers for {gpus} GPUs (CUDA): {size:.1f} MB of StableHLO"
        for name, size in sizes_of.items()
    )


def _compile(config: Config, topology: str, *, sample: bool, effort: compiling.Effort) -> Report:
    mesh = chips.make_pod_mesh(topology, config.mesh)
    rounds = 1 if sample else config.accumulation
    if not sample and config.stage == "few_step" and config.few_step.has_critic:
        reports = {
            role: _compile_one(turn, f"training, {role}'s turn", config, topology, effort, rounds=rounds)
            for role, turn in programs.turns(config, mesh).items()
        }
        return dataclasses.replace(reports["student"], before=reports["critic"])
    program = (programs.sampling_step if sample else programs.train_step)(config, mesh)
    result = _compile_one(program, "sampling" if sample else "training", config, topology, effort, rounds=rounds)
    if sample and (before := programs.first_stage(config, mesh)):
        first = _compile_one(before, "first stage", config, topology, effort, rounds=1)
        return dataclasses.replace(result, before=first)
    return result


def _compile_one(
    program: programs.Program, name: str, config: Config, topology: str, effort: compiling.Effort, *, rounds: int
) -> Report:
    devices = chips.make_pod_mesh(topology, config.mesh).size
    facts = Report(topology=topology, chips=devices, program=name, images=config.batch_size)
    lowered, begin = program.lower(), time.perf_counter()
    try:
        compiled, complaints = compiling.compile_for_pod(
            lowered, effort, what=f"compiling the {name} for {topology} with {effort} effort"
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()[0]
        return dataclasses.replace(facts, shortage=words, compile_seconds=time.perf_counter() - begin)
    return dataclasses.replace(
        facts,
        **report.measure(compiled, chips.chip(topology), rounds=rounds, sampling=name == "sampling"),
        rematerializations=complaints,
        compile_seconds=time.perf_counter() - begin,
    )
