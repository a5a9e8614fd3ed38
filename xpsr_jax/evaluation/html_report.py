"""The report as one self-contained HTML file: sortable tables, and the best and worst cases side by side."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from xpsr_jax.errors import UserError
from xpsr_jax.evaluation.matching import Comparison
from xpsr_jax.evaluation.protocols import LOWER_IS_BETTER, NATIVE, TITLES, MetricName
from xpsr_jax.evaluation.tables import Evaluation, best, describe, digits, heading, notes, rows_beside, title
from xpsr_jax.images.alpha import on_white
from xpsr_jax.images.reading import read_picture

_CASES = 4  # the most cases shown as best, and as worst
_SIDE = 512  # pixels of a picture's longer side
_TEXT_COLUMNS = ("image", "method")
_TEMPLATE = Path(__file__).with_name("report.html")


def html_report(result: Evaluation, comparisons: Sequence[Comparison], manifest: Mapping) -> str:
    """Makes the page's HTML. Best and worst cases are chosen by DISTS, or by the first metric if there is no DISTS.

    Args:
        result: the scores.
        comparisons: the measured images, with the files that are shown.
        manifest: how they were measured, as JSON of any form.
    """
    by_image = [name for name in result.metrics if name != "fid"]
    body = [f"<h1>{html.escape(heading(result))}</h1>", f"<p>{html.escape(describe(result))}</p>"]
    body.append(_means(result))
    if by_image:
        chosen: MetricName = "dists" if "dists" in by_image else by_image[0]
        body += [_cases(result, comparisons, chosen), _per_image(result, by_image)]
    body += [_manifest(manifest)]
    page = _TEMPLATE.read_text(encoding="utf-8")
    return page.replace("{{title}}", html.escape(heading(result))).replace("{{body}}", "\n".join(body))


def _means(result: Evaluation) -> str:
    means = {method: scores.mean for method, scores in result.scores.items()}
    first = {name: best(name, [mean[name] for mean in means.values()]) for name in result.metrics}
    rows = []
    for method, mean in means.items():
        marks = ["best" if len(means) > 1 and mean[n] == first[n] else "" for n in result.metrics]
        cells = [_cell(n, mean[n], mark) for n, mark in zip(result.metrics, marks, strict=True)]
        rows.append(f"<tr><th scope=row>{html.escape(method)}</th>{''.join(cells)}</tr>")
    for origin, others in rows_beside(result).items():
        for method, row in others.items():
            cells = [_cell(n, row.get(n)) for n in result.metrics]
            rows.append(f"<tr class=other><th scope=row>{html.escape(method)}, {origin}</th>{''.join(cells)}</tr>")
    said = "".join(f"<p class=note>{html.escape(note)}</p>" for note in notes(result).values())
    return f"<h2>Mean</h2>{_table(['method', *map(title, result.metrics)], rows)}{said}"


def _cases(result: Evaluation, comparisons: Sequence[Comparison], metric: MetricName) -> str:
    """The best and worst images of the first method."""
    method, scores = next(iter(result.scores.items()))
    ranked = sorted(
        comparisons,
        key=lambda comparison: scores.images[comparison.name][metric],
        reverse=metric not in LOWER_IS_BETTER,
    )
    count = min(_CASES, (len(ranked) + 1) // 2)
    good, bad = ranked[:count], [each for each in reversed(ranked[count:])][:count]
    order = f"by {TITLES[metric]}" + (f" of {method}" if len(result.scores) > 1 else "")
    parts = []
    for name, cases in (("Worst", bad), ("Best", good)):
        if cases:
            figures = "".join(_figure(result, comparison) for comparison in cases)
            parts.append(f"<h2>{name} <small>{html.escape(order)}</small></h2>{figures}")
    return "".join(parts)


def _figure(result: Evaluation, comparison: Comparison) -> str:
    pictures = [("input", comparison.lr)] if comparison.lr is not None else []
    pictures += [*zip(result.scores, comparison.restored, strict=True), ("original", comparison.reference)]
    tiles = []
    for name, path in pictures:
        said = ""
        if name in result.scores:
            row = result.scores[name].images[comparison.name]
            said = ", ".join(f"{TITLES[n]} {digits(n, row[n])}" for n in row if n in NATIVE)
        label = html.escape(name)
        try:
            image = _data_uri(path, comparison.size, cropped=path != comparison.lr)
        except UserError:  # an unreadable input (inputs are not measured), or a file that has changed since
            continue
        tiles.append(
            f'<figure><img src="{image}" alt="{label} of {html.escape(comparison.name)}">'
            f"<figcaption><b>{label}</b> {html.escape(said)}</figcaption></figure>"
        )
    return f"<h3>{html.escape(comparison.name)}</h3><div class=case>{''.join(tiles)}</div>"


def _per_image(result: Evaluation, metrics: Sequence[MetricName]) -> str:
    several = len(result.scores) > 1
    rows = []
    for method, scores in result.scores.items():
        for image, row in scores.images.items():
            who = f"<td class=text>{html.escape(method)}</td>" if several else ""
            cells = "".join(_cell(n, row[n]) for n in metrics)
            rows.append(f"<tr><th scope=row>{html.escape(image)}</th>{who}{cells}</tr>")
    header = ["image", *(["method"] if several else []), *map(title, metrics)]
    return f"<h2>Every image <small>click a column header to sort</small></h2>{_table(header, rows, sortable=True)}"


def _manifest(manifest: Mapping) -> str:
    rows = [
        f"<tr><th scope=row>{html.escape(str(key))}</th><td class=text>{html.escape(_said(value))}</td></tr>"
        for key, value in manifest.items()
        if key != "images"
    ]
    return f"<details><summary>How this was made</summary>{_table([], rows)}</details>"


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_said(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _table(header: Sequence[str], rows: Sequence[str], *, sortable: bool = False) -> str:
    heads = [f"<button type=button>{html.escape(text)}</button>" if sortable else html.escape(text) for text in header]
    columns = "".join(
        f"<th scope=col{' class=text' if text in _TEXT_COLUMNS else ''}>{head}</th>"
        for text, head in zip(header, heads, strict=True)
    )
    head = f"<thead><tr>{columns}</tr></thead>" if header else ""
    kind = " class=sortable" if sortable else ""
    return f"<div class=scroll tabindex=0><table{kind}>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def _cell(name: MetricName, value: float | None, mark: str = "") -> str:
    number = "" if value is None else f' data-value="{value:.9g}"'
    return f'<td{number} class="{mark}">{digits(name, value)}</td>'


def _data_uri(path: Path, size: tuple[int, int], *, cropped: bool) -> str:
    """A JPEG of the displayed size: the compared part of an image, or an input, enlarged by nearest neighbour."""
    height, width = size
    pixels = on_white(read_picture(path))
    image = Image.fromarray(np.ascontiguousarray(pixels[:height, :width] if cropped else pixels))
    scale = min(1.0, _SIDE / max(height, width))
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.NEAREST if image.width < shown[0] else Image.Resampling.LANCZOS
    stream = io.BytesIO()
    image.resize(shown, resampling).save(stream, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
