"""Scores as tables, for the terminal and as Markdown. Scores from elsewhere can be shown beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xpsr_jax.errors import printable
from xpsr_jax.evaluation.paper import PaperRow
from xpsr_jax.evaluation.protocols import LOWER_IS_BETTER, TITLES, MetricName, Protocol
from xpsr_jax.evaluation.scoring import MethodScores

Origin = Literal["elsewhere", "paper"]


@dataclass(frozen=True)
class Evaluation:
    """The content of a report.

    Attributes:
        scores: scores of each method.
        protocol: the protocol of the measurement.
        metrics: the metrics in the order of the tables.
        set_name: name of the paper's set to which the originals belong. None: not known.
        others: scores of other methods from elsewhere.
        paper: the paper's scores for that set (`paper.scores_of_set`). Empty: they are not shown.
        crop_to_multiple: all images were cropped at the right and at the bottom to a multiple of this number of pixels.
            1: they were not cropped.
    """

    scores: Mapping[str, MethodScores]
    protocol: Protocol
    metrics: Sequence[MetricName]
    set_name: str | None
    others: Mapping[str, Mapping[MetricName, float]] = field(default_factory=dict)
    paper: Mapping[str, PaperRow] = field(default_factory=dict)
    crop_to_multiple: int = 1

    @property
    def count(self) -> int:
        """The number of images that were measured."""
        return len(next(iter(self.scores.values())).images)


def title(name: MetricName) -> str:
    """A metric's column header, with an arrow for the direction that is better."""
    return f"{TITLES[name]} {'↓' if name in LOWER_IS_BETTER else '↑'}"


def digits(name: MetricName, value: float | None) -> str:
    """Formats a score with the number of digits that is usual in papers."""
    if value is None:
        return "–"
    return f"{value:.{2 if name in ('psnr', 'fid', 'musiq', 'niqe') else 4}f}"


def best(name: MetricName, values: Sequence[float]) -> float:
    """The best of several scores of one metric."""
    return min(values) if name in LOWER_IS_BETTER else max(values)


def rows_beside(result: Evaluation) -> dict[Origin, dict[str, PaperRow]]:
    """Scores that were not measured here, by their origin, restricted to the metrics that were measured."""
    rows: dict[Origin, dict[str, PaperRow]] = {}
    sources: dict[Origin, Mapping[str, PaperRow]] = {"elsewhere": result.others, "paper": result.paper}
    for origin, methods in sources.items():
        measured: dict[str, PaperRow] = {
            method: {n: row[n] for n in result.metrics if n in row} for method, row in methods.items()
        }
        if found := {method: row for method, row in measured.items() if row}:
            rows[origin] = found
    return rows


def notes(result: Evaluation) -> dict[Origin, str]:
    """A line for each origin of `rows_beside` that says how its scores are to be read."""
    lines: dict[Origin, str] = dict.fromkeys(rows_beside(result), "elsewhere: these scores were not measured here.")
    if "paper" in lines:
        lines["paper"] = (
            f"paper: Table 1 of the paper for {result.set_name}, not measured here. The paper may use other crops, "
            "borders and versions of the metrics, so only large differences mean something. –: not legible, or not in "
            "that table."
        )
    elif result.paper:
        lines["paper"] = f"paper: its Table 1 for {result.set_name} has none of these metrics."
    return lines


def print_scores(result: Evaluation, console: Console | None = None) -> None:
    """Prints the means, with the best of several methods in bold, and then the scores from elsewhere."""
    table = Table(title=heading(result), title_justify="left")
    table.add_column("", overflow="fold")
    for name in result.metrics:
        table.add_column(title(name), justify="right")
    means = {method: scores.mean for method, scores in result.scores.items()}
    for method, mean in means.items():
        cells = []
        for name in result.metrics:
            first = len(means) > 1 and mean[name] == best(name, [each[name] for each in means.values()])
            cells.append(f"[bold]{digits(name, mean[name])}[/bold]" if first else digits(name, mean[name]))
        table.add_row(_name(method), *cells)
    for origin, rows in rows_beside(result).items():
        table.add_section()
        for method, row in rows.items():
            cells = [digits(name, row.get(name)) for name in result.metrics]
            table.add_row(f"{_name(method)} [dim]({origin})[/dim]", *cells)
    console = console or Console()
    console.print(table)
    if note := notes(result).get("paper"):
        console.print(note, soft_wrap=True, highlight=False)


def _name(method: str) -> str:
    """A method's name as plain text. Users choose it, so it may look like Rich's markup."""
    return escape(printable(method))


def heading(result: Evaluation) -> str:
    """A line with the set, the number of images, the protocol, and how images were cropped."""
    of_set = f"{result.set_name}, " if result.set_name else ""
    cropped = f", cropped to a multiple of {result.crop_to_multiple}" if result.crop_to_multiple > 1 else ""
    return f"{of_set}{result.count} images, protocol {result.protocol.name}{cropped}"


def markdown(result: Evaluation, manifest: Mapping) -> str:
    """The report as Markdown: means, scores from elsewhere, scores of every image, protocol and versions."""
    columns = [title(name) for name in result.metrics]
    parts = [f"# {heading(result)}", _markdown_table(["", *columns], _mean_rows(result))]
    beside, said = rows_beside(result), notes(result)
    for origin in said:
        parts.append(said[origin])
        if origin in beside:
            rows = beside[origin].items()
            cells = [[method, *(digits(n, row.get(n)) for n in result.metrics)] for method, row in rows]
            parts.append(_markdown_table(["", *columns], cells))
    per_image = [name for name in result.metrics if name != "fid"]
    for method, scores in result.scores.items():
        cells = [[image, *(digits(n, row[n]) for n in per_image)] for image, row in scores.images.items()]
        parts += [f"## {method}", _markdown_table(["image", *(title(n) for n in per_image)], cells)]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return "\n\n".join([*parts, f"Protocol: {describe(result)} Versions: {versions}.\n"])


def describe(result: Evaluation) -> str:
    """Describes the protocol in words, and how images were cropped."""
    protocol, multiple = result.protocol, result.crop_to_multiple
    channels = {
        "y": "luma of BT.601 in its studio range",
        "y-full": "luma of BT.601 in full range",
        "rgb": "all three channels",
    }[protocol.channels]
    border = f"without {protocol.border} pixels of border" if protocol.border else "on whole images"
    cropped = f" All images were cropped first, at the right and at the bottom, to a multiple of {multiple} pixels."
    return (
        f"{protocol.name}: PSNR and SSIM on {channels}, {border}; all other metrics on whole RGB images."
        + cropped * (multiple > 1)
    )


def _mean_rows(result: Evaluation) -> list[list[str]]:
    return [[method, *(digits(n, s.mean[n]) for n in result.metrics)] for method, s in result.scores.items()]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
