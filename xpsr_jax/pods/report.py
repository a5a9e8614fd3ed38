"""The compiler's figures for a program on a pod: memory, work, communication."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from xpsr_jax.config import Config
from xpsr_jax.pods.chips import Chip, chip

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16} | {f"{kind}{bits}": bits for kind in "fsu" for bits in (4, 8, 16, 32, 64)}
_TYPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Report:
    """The report of one program. Bytes, flops and seconds are for one chip and one step.

    Attributes:
      topology, chips: the mesh's topology and number of chips.
      images: size of the global batch.
      arguments: bytes of the step's inputs: state, frozen parameters and batch.
      temporaries: bytes of its intermediate results.
      peak: bytes of arguments, temporaries, and outputs that do not reuse an argument's memory; None if the compiler
        failed before it knew.
      flops, seconds: XLA's estimate, a roofline of each operation's products and bytes moved; 0 without a program.
      moved: bytes between memory and compute units, as in the estimate.
      collectives: kind -> (number, bytes of the results on one chip). Those in a loop are counted once.
      custom_calls: kernels that the compiler cannot analyse. For kernels that state their products and bytes, the
        estimate includes the shortest possible time; the `silent_calls` others are not included.
      rounds: rounds of the loop over microbatches. XLA counts the loop's body once, this report counts all rounds.
      loops: other loops in the program, except the sampler's; their bodies are counted once.
      rematerializations: tensors that the partitioner could reshard only by copying them whole to every chip.
      compile_seconds: seconds of compiling on this machine.
      shortage: the compiler's message, if the program does not fit.
      before: the report of the program that runs before it: in sampling the first stage, in few-step training the
        critic's turn. None: no such program.
    """

    topology: str
    chips: int
    program: str
    images: int
    arguments: float = 0
    temporaries: float = 0
    peak: float | None = None
    flops: float = 0
    seconds: float = 0
    moved: float = 0
    collectives: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    custom_calls: int = 0
    silent_calls: int = 0
    rounds: int = 1
    loops: int = 0
    rematerializations: int = 0
    compile_seconds: float = 0
    shortage: str | None = None
    before: "Report | None" = None

    @property
    def fits(self) -> bool:
        """Whether the peak fits in a chip's memory, also for the program that runs before."""
        own = self.shortage is None and self.peak is not None and self.peak <= chip(self.topology).hbm
        return own and (self.before is None or self.before.fits)


def measure(compiled: jax.stages.Compiled, on: Chip, *, rounds: int = 1, sampling: bool = False) -> dict[str, Any]:
    """The fields of a report that come from the compiled program for these chips. `rounds` is as in `Report`."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text() or ""
    assert memory is not None  # Available on TPUs and CPUs.
    kernels = custom_calls(text)
    stated = [kernel for kernel in kernels if kernel]
    kernel_seconds = sum(max(flops / on.flops, moved / on.bandwidth) for flops, moved in stated)
    returned = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.argument_size_in_bytes + memory.temp_size_in_bytes + returned,
        "flops": cost.get("flops", 0.0) * rounds,
        "seconds": (_seconds(cost.get("optimal_seconds", 0.0)) + kernel_seconds) * rounds,
        "moved": cost.get("bytes accessed", 0.0) * rounds,
        "collectives": collectives(text),
        "custom_calls": len(kernels),
        "silent_calls": len(kernels) - len(stated),
        "rounds": rounds,
        "loops": max(0, len(re.findall(r" while\(", text)) - (rounds > 1 or sampling)),
    }


def _seconds(estimate: float) -> float:
    """XLA's sum of seconds, without the -1 s that it adds for each operation that it cannot estimate."""
    return estimate + math.ceil(max(0.0, -estimate))


def custom_calls(text: str) -> list[tuple[float, float] | None]:
    """(flops, bytes) that each custom kernel in a compiled program's HLO states, or None if it states nothing."""
    found: list[tuple[float, float] | None] = []
    for line in text.splitlines():
        if 'custom_call_target="tpu_custom_call"' in line:
            stated = re.search(r'"cost_estimate":{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"', line)
            found.append((float(stated[1]), float(stated[2])) if stated else None)
    return found


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Kind -> (number, bytes) of the collectives in a compiled program's HLO.

    Bytes are those of the results on one chip. An asynchronous pair (`-start`, `-done`) counts once, with the bytes of
    its `-done`.
    """
    found: dict[str, tuple[int, int]] = {}
    pattern = rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(COLLECTIVES)})(-start|-done)?\("
    for result, kind, part in re.findall(pattern, text, flags=re.MULTILINE):
        if part != "-start":
            number, total = found.get(kind, (0, 0))
            found[kind] = number + 1, total + bytes_of(result)
    return found


def bytes_of(types: str) -> int:
    """The bytes of array types in HLO notation: "(f32[8,128]{1,0}, bf16[4])"."""
    total = 0
    for kind, sizes in _TYPE.findall(types):
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * _BITS.get(kind, 0) // 8
    return total


def suggestions(report: Report, config: Config) -> list[str]:
    """Changes that reduce the memory of a program that does not fit, mildest first."""
    if report.program == "sampling":
        fewer = max(report.chips, report.images // 2)
        return [f"fewer images at once: --batch-size {fewer}", "chips with more memory"]
    found = []
    a_chip = config.batch_size // report.chips // config.accumulation
    if not config.precision.remat:
        found.append("recompute activations: --precision.remat")
    if a_chip > 1:
        found.append(f"compute the batch in parts: --accumulation {config.accumulation * 2}")
    if config.mesh.data != 1:
        found.append("split the parameters over all chips: --mesh.data 1 --mesh.fsdp -1")
    if config.precision.frozen_dtype == "float32":
        found.append("frozen parameters in half the bytes: --precision.frozen-dtype bfloat16")
    return [*found, "more chips, or chips with more memory"]


def render(report: Report) -> str:
    """The report as text, with one fact per line. The report of the program that runs before comes first."""
    before = "" if report.before is None else render(report.before) + "\n\n"
    hbm = chip(report.topology).hbm
    lines = {
        "program": f"{report.program}, {report.images} images on {report.topology} ({report.chips} chips)",
        "compiled in": f"{report.compile_seconds:.0f} s",
    }
    if report.shortage is not None:
        lines["memory per chip"] = f"does not fit: {report.shortage}"
    else:
        assert report.peak is not None
        lines["memory per chip"] = (
            f"{_gib(report.arguments)} arguments, {_gib(report.temporaries)} temporaries; "
            f"at most {_gib(report.peak)} of {_gib(hbm)}, {'fits' if report.peak <= hbm else 'does not fit'}"
        )
        lines |= _work(report)
    if report.rematerializations:
        lines["warning"] = f"{report.rematerializations} involuntary full rematerializations by the partitioner"
    return before + "\n".join(f"{name + ':':18}{text}" for name, text in lines.items())


def _work(report: Report) -> dict[str, str]:
    peak = chip(report.topology).flops
    lines = {"work per chip": f"{report.flops / 1e12:.2f} TFLOP, {report.moved / 1e9:.1f} GB moved"}
    if report.seconds > 0:
        lines["XLA's estimate"] = (
            f"{report.seconds * 1e3:.1f} ms per step, {report.images / report.seconds:.1f} images per second"
            f"{' and step' if report.program == 'sampling' else ''}, "
            f"{report.flops / report.seconds / peak:.0%} of the peak {peak / 1e12:.0f} TFLOP/s"
        )
    if report.rounds > 1:
        lines["counted"] = f"the loop over microbatches {report.rounds} times, but its communication once"
    if report.loops:
        lines["counted once"] = f"the bodies of {report.loops} other loops, which may run more often"
    if report.custom_calls:
        lines["custom kernels"] = (
            f"{report.custom_calls} that the compiler cannot analyse: {report.custom_calls - report.silent_calls} "
            f"counted by the work that they state, {report.silent_calls} not counted"
        )
    lines["communication"] = (
        ", ".join(
            f"{number} {kind} ({_gib(total)})"
            for kind, (number, total) in sorted(report.collectives.items(), key=lambda item: -item[1][1])
        )
        or "none"
    )
    return lines


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def from_json(data: Mapping[str, Any]) -> Report:
    """The report whose `dataclasses.asdict` was stored as JSON."""
    known = {each.name for each in dataclasses.fields(Report)}
    pairs = {kind: (number, total) for kind, (number, total) in data["collectives"].items()}
    before = None if data.get("before") is None else from_json(data["before"])
    values = {name: value for name, value in data.items() if name in known}
    return Report(**values | {"collectives": pairs, "before": before})
