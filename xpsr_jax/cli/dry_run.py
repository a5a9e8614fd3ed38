"""`xpsr restore --dry-run`: shows the work and its cost. Nothing is computed or written."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xpsr_jax.errors import UserError, printable, say

if TYPE_CHECKING:
    from xpsr_jax.inference.forecast import Evaluations, Forecast, Memory
    from xpsr_jax.inference.job import Policy, Task
    from xpsr_jax.inference.restore import Restorer

# Memory of a process on a CPU without the networks: Python, libraries, the compiler. Measured:
# docs/reference/sampling.md, Memory against size.
PROCESS_BYTES = 1_000_000_000
# Number of images that get a line of their own.
SHOWN = 20
_LONGEST_NAME = 32

Size = tuple[int, int]


class Planned(NamedTuple):
    """An image that would be restored. `size` is (height, width)."""

    source: Path
    size: Size


def show_plan(
    restorer: "Restorer", alone: "Restorer", tasks: "Sequence[Task]", policy: "Policy", *, on_cpu: bool
) -> bool:
    """Prints what restoring the tasks would do; returns whether all of them could be restored.

    Args:
        restorer: has batches for all devices; its model may have shapes instead of arrays.
        alone: has batches for one device.
        on_cpu: whether the devices are CPUs. Then the process itself uses the same memory.

    Raises UserError for the first image that could not be restored, unless the policy skips it.
    """
    from xpsr_jax.inference.forecast import Forecast

    forecast = Forecast(restorer)
    planned = list(_sizes(restorer, tasks, policy))
    say(_steps_text(restorer, forecast))
    if planned:
        say("\n".join(_table(restorer, forecast, planned)))
        batches = restorer.plan([restorer.network_size(*each.size) for each in planned])
        parts = [forecast.of_batch([planned[i].size for i in batch]) for batch in batches]
        filled = sum(_filled(restorer, forecast, planned[batch[0]].size, len(batch)) for batch in batches)
        say(f"In all {_evaluations_text(parts)}, in {_counted(len(batches), 'batch', 'batches')}{_fill_text(filled)}.")
        say(_memory_text(Forecast(alone), alone, [each.size for each in planned], on_cpu))
    say("This was a dry run. Nothing was computed or written.")
    return len(planned) == len(tasks)


def _sizes(restorer: "Restorer", tasks: "Sequence[Task]", policy: "Policy") -> Iterator[Planned]:
    from xpsr_jax.images.reading import read_size
    from xpsr_jax.inference.files import checked_size

    for task in tasks:
        try:
            checked_size(restorer, task.source, policy.max_pixels, policy.format)
            yield Planned(task.source, read_size(task.source, max_pixels=policy.max_pixels))
        except UserError as error:
            if not policy.skip_errors:
                raise
            say(f"error: {error}", to_stderr=True)


def _steps_text(restorer: "Restorer", forecast: "Forecast") -> str:
    sampling = restorer.sampling
    if not restorer.steps:
        return "0 steps: the result is the first stage's output."
    guided = sum(run.last - run.first for run in restorer.planned.runs if run.guided)
    guidance = f"guidance of {sampling.guidance_scale:g} in {guided} of them" if guided else "no guidance"
    each = f"Each image, or tile of a large one, needs {_evaluations_text([forecast.evaluations])}."
    return f"{restorer.steps} of {sampling.steps} steps of {sampling.sampler}, {guidance}.\n{each}"


def _table(restorer: "Restorer", forecast: "Forecast", planned: Sequence[Planned]) -> list[str]:
    rows = [("image", "size", "becomes", "networks see", "tiles", "evaluations")]
    for each in planned[:SHOWN]:
        result = tuple(side * restorer.sampling.upscale for side in each.size)
        tiles, network_size = forecast.tiles(each.size), restorer.network_size(*each.size)
        seen = _size_text(network_size) if restorer.steps else "-"
        count = sum(forecast.evaluations) * tiles.steps
        sizes = _size_text(each.size), _size_text(result), seen
        rows.append((_name(each.source), *sizes, _tiles_text(tiles), f"{count:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        columns = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *columns]))
    if more := planned[SHOWN:]:
        counts = Counter(each.size for each in more)
        shown = ", ".join(f"{count} of {_size_text(size)}" for size, count in counts.most_common(3))
        others = f" and {len(counts) - 3} other sizes" if len(counts) > 3 else ""
        lines.append(f"and {len(more)} more: {shown}{others}")
    return lines


def _tiles_text(tiles: tuple[int, int, int]) -> str:
    """The number of tiles of the steps, and the numbers of the autoencoder and the first stage if they differ."""
    steps, autoencoder, first_stage = tiles
    others = [f"{autoencoder} for the VAE"] if autoencoder > 1 and autoencoder != steps else []
    others += [f"{first_stage} for the first stage"] if first_stage > 1 else []
    return " + ".join([str(steps), *others])


def _filled(restorer: "Restorer", forecast: "Forecast", size: Size, images: int) -> int:
    """The number of evaluations that only fill up a batch."""
    if not restorer.steps:
        return 0
    tiles = forecast.tiles(size).steps
    return sum(forecast.of_batch([size])) - sum(forecast.evaluations) * tiles * (images if tiles == 1 else 1)


def _fill_text(filled: int) -> str:
    return f"; {filled:,} of them only fill up batches" if filled else ""


def _evaluations_text(parts: "Sequence[Evaluations]") -> str:
    whole, outer = (sum(each[i] for each in parts) for i in (0, 1))
    return f"{whole:,} evaluations of the networks" + (f" and {outer:,} of their outermost layers" if outer else "")


def _memory_text(forecast: "Forecast", restorer: "Restorer", sizes: Sequence[Size], on_cpu: bool) -> str:
    """The memory for the image that needs most: the largest one restored as a whole, or one restored in tiles."""
    largest: dict[bool, Size] = {}
    for size in sorted(set(sizes), key=lambda size: size[0] * size[1]):
        largest[restorer.is_large(restorer.network_size(*size))] = size
    memories: list[Memory] = [forecast.memory(size) for size in largest.values()]
    most = max(memories, key=lambda memory: memory.working)
    parts = f"{_bytes_text(most.weights)} for the weights, {_bytes_text(most.working)} for the computation"
    if on_cpu:
        return f"Estimated memory: {parts}, about {_bytes_text(PROCESS_BYTES)} for the process itself."
    return f"Estimated memory of each device: {parts}."


def _bytes_text(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _size_text(size: tuple[int, ...]) -> str:
    """Width × height, from (height, width)."""
    return f"{size[1]} × {size[0]}"


def _name(path: Path) -> str:
    text = printable(path)
    return text if len(text) <= _LONGEST_NAME else f"…{text[1 - _LONGEST_NAME :]}"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
