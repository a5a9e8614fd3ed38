"""The study's directions (benchmarks/ablations.py) beside those of the paper's tables, as far as these are legible."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xpsr_jax.evaluation.paper import ITSELF, ablation
from xpsr_jax.evaluation.protocols import MetricName

SETS = ("RealSR", "DRealSR")
# Of each of the study's tables: its number in the paper, and what the paper calls the rows. Of Table 2 no numbers are
# known, and of Table 4 it is not known which of two rows is which.
ROWS: dict[str, tuple[int, dict[str, str]]] = {
    "Table 3: fusion": (
        3,
        {"in series": "serial", "high-level stream alone": "high-level", "low-level stream alone": "low-level"},
    ),
    "Table 4: Degradation-Free Constraint": (4, {"no constraint": "none"}),
    "Table 5: negative prompt": (5, {"empty words, guidance 0.5": "empty negative prompt"}),
}
METRICS: dict[str, MetricName] = {"SSIM-Y": "ssim", "LPIPS (alex)": "lpips", "DISTS": "dists"}
ARROWS = {"SSIM-Y": "↑", "LPIPS (alex)": "↓", "DISTS": "↓"}


@dataclass(frozen=True)
class Difference:
    """How far a row is from XPSR's own choice in one metric, as tables show it: × 1000, but PSNR in dB.

    Attributes:
      mean: of all crops.
      low: where its 95% interval begins.
      high: where it ends.
    """

    mean: float
    low: float
    high: float


def beside_paper(study: Mapping[str, Mapping[str, Mapping[str, Difference]]]) -> str:
    """A Markdown table of what both have measured.

    Args:
      study: table -> row -> metric -> difference.
    """
    lines = [f"| | metric | here | {' | '.join(f'paper, {name}' for name in SETS)} | direction |", "|---" * 6 + "|"]
    for title, (number, names) in ROWS.items():
        for row, name in names.items():
            for metric, key in METRICS.items():
                theirs = [*_of_paper(number, name, key)]
                if any(each is not None for each in theirs):
                    ours = study[title][row][metric]
                    cells = ["–" if each is None else f"{each:+.1f}" for each in theirs]
                    here = f"{ours.mean:+.1f} ({ours.low:+.1f} to {ours.high:+.1f})"
                    said = direction(ours, [each for each in theirs if each is not None])
                    lines.append(
                        f"| Table {number}: {row} | {metric} {ARROWS[metric]} | {here} | {' | '.join(cells)} | {said} |"
                    )
    return "\n".join(lines) + "\n"


def direction(ours: Difference, theirs: list[float]) -> str:
    """Whether both point the same way: "agrees" or "disagrees" where ours is significant, else what it leans to."""
    signs = {each > 0 for each in theirs}
    if len(signs) > 1:
        return "the paper's sets differ"
    same = (ours.mean > 0) in signs
    if ours.low <= 0 <= ours.high:
        return f"not significant, leans {'the same' if same else 'the other'} way"
    return "agrees" if same else "disagrees"


def _of_paper(table: int, name: str, metric: MetricName) -> Iterator[float | None]:
    """The paper's difference from XPSR itself on each of `SETS`, × 1000; None where it is not legible."""
    rows = ablation(table)
    for set_name in SETS:
        row, whole = (rows[each].get(set_name, {}).get(metric) for each in (name, ITSELF[table]))
        yield None if row is None or whole is None else 1000 * (row - whole)
