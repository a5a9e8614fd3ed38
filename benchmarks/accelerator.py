"""Measures XPSR at full size on this machine's accelerator. Nothing is downloaded: all weights are random.

    python -m benchmarks.accelerator --json accelerator.json
    python -m benchmarks.accelerator --size reduced        tests the command in a minute, also on a CPU

It runs in bfloat16, on one device:

- the product of two large matrices, which shows the speed that the device can reach;
- every attention kernel at the sizes of the networks' layers, values and gradients, compared with "plain" in float32;
- guided sampling steps of one picture, the decoder and a training step, as sample.py and train.py run them;
- if torch and diffusers are installed: the stock UNet of Stable Diffusion 1.5, ours and PyTorch's, two samples, in
  turn.

Seconds are medians without compilation. "Of peak" compares the program's rate of products and sums (as counted by XLA)
with the rate that the device's maker states, if it is known here. "Of product" compares it with the rate of the first
row. Memory is the compiler's own count. Exit code 1: an attention kernel is wrong or fails, or a
program cannot run.
"""

import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# PyTorch needs memory too, so JAX must not allocate all of it. This must be set before jax is imported.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jaxlib

from benchmarks import accelerator_programs as programs
from benchmarks.command_line import command_line
from xpsr_jax.inference.compilation import use_tpu_flags
from xpsr_jax.models.configs import Kernel

# Peak rates of dense bfloat16 operations per second, by a part of the device's name. From NVIDIA's data sheets and
# Google's pages of the chips, as in xpsr_jax.pods.chips.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "v4": 275e12,
    "v5 lite": 197e12,
    "v5p": 459e12,
    "v6 lite": 918e12,
}
KERNELS: dict[str, tuple[Kernel, ...]] = {
    "cpu": ("plain", "chunked", "two_pass"),
    "gpu": ("plain", "chunked", "two_pass", "cudnn"),
    "tpu": ("plain", "chunked", "two_pass", "flash"),
}
# A kernel's error may be at most TIMES the error of "plain" in bfloat16, or PART of the range of the values.
TIMES, PART = 3.0, 2e-2


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        size: Size of the networks. full: their real size. reduced: so small that a CPU runs them in a minute.
        json: File to write the figures to.
    """

    size: Literal["full", "reduced"] = "full"
    json: Path | None = None


@dataclass(frozen=True)
class Row:
    """The measurements of one program. None: not measured.

    Attributes:
        name: name of the program.
        seconds: seconds of a run.
        flops: products and sums of a run.
        memory: memory in bytes.
        compile_seconds: seconds of compilation.
        error: error of a kernel, relative to the range of its values.
        failure: why there are no figures, or what is wrong.
    """

    name: str
    seconds: float | None = None
    flops: float | None = None
    memory: float | None = None
    compile_seconds: float | None = None
    error: float | None = None
    failure: str | None = None


def run(arguments: Arguments) -> int:
    begin = time.perf_counter()
    use_tpu_flags()
    sizes = programs.FULL if arguments.size == "full" else programs.REDUCED
    device = jax.local_devices()[0]
    peak = next((peak for part, peak in PEAKS.items() if part in device.device_kind), None)
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, jaxlib {jaxlib.__version__}", flush=True)
    print(f"{'':34s} {'ms':>10s} {'GiB':>7s} {'of peak':>8s} {'of product':>10s} {'compiled, s':>11s}  error")
    rows: list[Row] = []
    for row in measured(sizes, device.platform):
        rows.append(row)
        print(line(row, peak, reached(rows)), flush=True)
    seconds = time.perf_counter() - begin
    print(f"{seconds:.0f} s in all")
    if arguments.json is not None:
        facts = {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, "peak": peak}
        facts |= {"size": arguments.size, "seconds": seconds, "programs": [dataclasses.asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
    return int(any(row.failure for row in rows))


def measured(sizes: programs.Sizes, platform: str) -> Iterator[Row]:
    """Yields each row as soon as it is measured."""
    yield measure("product of matrices", lambda: programs.product(sizes))
    for shape in sizes.attentions:
        for gradient in (False, True):
            yield from attentions(shape, sizes.heads, KERNELS[platform], gradient=gradient)
    yield measure(f"{sizes.steps} guided steps", lambda: programs.guided_steps(sizes))
    yield measure("decoder", lambda: programs.decoder(sizes))
    if importlib.util.find_spec("torch") and importlib.util.find_spec("diffusers"):
        yield from stock_unets(sizes)
    # This is the last row, because a program that does not fit may leave the device's memory fragmented.
    yield measure(f"training step, batch {sizes.config.batch_size}", lambda: programs.training_step(sizes))


def stock_unets(sizes: programs.Sizes) -> Iterator[Row]:
    """Our UNet and PyTorch's. If the installation of these packages is broken, one row that says why."""
    try:
        from benchmarks.accelerator_stock import stock

        yield from (Row(name, seconds=seconds) for name, seconds in stock(sizes).items())
    except (ImportError, RuntimeError) as error:
        yield Row("stock UNet", failure=first_line(error))


def attentions(
    shape: tuple[int, int, int], heads: int, kernels: tuple[Kernel, ...], *, gradient: bool
) -> Iterator[Row]:
    """Each kernel at one size. "plain" is the first. Its count of operations is used for all kernels."""
    queries, keys, features = shape
    allowed, flops = PART, None
    for kernel in kernels:
        name = f"{kernel}{', gradients' if gradient else ''}: {queries} x {keys}, {features}"
        errors: list[float] = []

        def prepare(kernel: Kernel = kernel, errors: list[float] = errors) -> programs.Prepared:
            program, error = programs.attended(kernel, shape, heads, gradient=gradient)
            errors.append(error)
            return program

        row = measure(name, prepare)
        if kernel == "plain":
            flops = row.flops
            allowed = max([allowed, *(TIMES * error for error in errors)])
        if errors:
            wrong = f"wrong: differs from plain by more than {allowed:.0e}" if not errors[0] <= allowed else row.failure
            row = dataclasses.replace(row, flops=flops, error=errors[0], failure=wrong)
        yield row


def measure(name: str, prepare: Callable[[], programs.Prepared]) -> Row:
    """Compiles and times a program. A failure is returned as a row, because the other programs may still run."""
    try:
        program = prepare()
        seconds = programs.seconds_of(program.run)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # JAX's errors are RuntimeErrors
        return Row(name, failure=first_line(error))
    return Row(name, seconds, program.flops, program.memory, program.compile_seconds)


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def reached(rows: list[Row]) -> float | None:
    """Products and sums per second of the first row."""
    first = rows[0]
    return first.flops / first.seconds if first.flops and first.seconds else None


def line(row: Row, peak: float | None, product: float | None) -> str:
    """A row of the table."""

    def share(whole: float | None) -> str:
        return f"{row.flops / row.seconds / whole:.1%}" if row.flops and row.seconds and whole else "-"

    ms = f"{row.seconds * 1e3:.2f}" if row.seconds is not None else "-"
    memory = f"{row.memory / 2**30:.2f}" if row.memory is not None else "-"
    compiled = f"{row.compile_seconds:.1f}" if row.compile_seconds is not None else "-"
    end = " ".join(filter(None, (f"{row.error:.1e}" if row.error is not None else "", row.failure)))
    return (
        f"{row.name:34s} {ms:>10s} {memory:>7s} {share(peak):>8s} {share(product):>10s} {compiled:>11s}  {end}".rstrip()
    )


if __name__ == "__main__":
    sys.exit(command_line(run, Arguments, __doc__))
