"""Compares restored images with their originals.

    xpsr evaluate --restored DIR --reference DIR

Prints a table. --output writes a report (HTML, Markdown, JSON, manifest), --json only the scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from xpsr_jax.cli.groups import Grouped, Groups, grouped, parse
from xpsr_jax.cli.run import check_options, command
from xpsr_jax.errors import UserError, printable, say
from xpsr_jax.evaluation.protocols import PROTOCOLS, MetricName
from xpsr_jax.files import check_writable
from xpsr_jax.serialisation import Range


@dataclass(frozen=True)
class Arguments:
    """The command line.

    Attributes:
        restored: Folders of restored images, with the names of their originals. Several folders are compared.
        reference: Folder of originals; or of a test set with originals in HR, test_HR or gt and inputs in LR, test_LR
            or lq.
        lr: Folder of inputs to show in the report (default: that of the test set).
        match: Text to replace in the names of results and inputs, to get the names of the originals: "_LR4=_HR" if
            RealSR's Canon_001_LR4.png belongs to Canon_001_HR.png, "_out=" to remove "_out" (default: the names are the
            same).
        protocol: Evaluation protocol. It decides the MANIQA version, the border and the channels.
        metrics: Metrics to compute; all: those of the protocol (default: those of the protocol that need no PyTorch).
        crop_to_multiple: Crop originals and results at the right and at the bottom to a multiple of this number of
            pixels before they are compared, as BasicSR does: 4 for RealSR, which has odd sizes (default: not cropped).
        set_name: Name of the test set in the paper: DIV2K-Val, RealSR or DRealSR. The paper's scores for this set are
            then shown as well. none: it is none of them (default: by the folder's name, only for the headings).
        beside: JSON file with scores of other methods to show as well: {"SeeSR": {"psnr": 28.1, ...}}.
        output: Folder for report.html, report.md, scores of each method as JSON, and manifest.json
            (default: no report).
        json: File for the scores: {"mean": {...}, "images": {name: {...}}}; for several folders one file each,
            FILE-NAME.json (default: no file).
        batch_size: Images per batch (default: by the devices).
        on_error: What to do if an image cannot be read. skip: its original is reported and left out for all methods,
            and the exit code is 1.
    """

    restored: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR...")]
    reference: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    lr: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    match: Annotated[str | None, tyro.conf.arg(metavar="OLD=NEW")] = None
    protocol: Literal["xpsr", "seesr"] = "xpsr"
    metrics: tuple[MetricName | Literal["all"], ...] = ()
    crop_to_multiple: Annotated[int, Range(1)] | None = None
    set_name: Annotated[str | None, tyro.conf.arg(name="set", metavar="NAME")] = None
    beside: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    batch_size: Annotated[int, Range(1)] | None = None
    on_error: Literal["stop", "skip"] = "stop"


_GROUPS: Groups = {
    "files": ("restored", "reference", "lr", "match", "output", "json", "beside", "on_error"),
    "measures": ("protocol", "metrics", "crop_to_multiple", "set_name"),
    "devices": ("batch_size",),
}


@command(
    interrupted="interrupted",
    lower="lower --batch-size, or leave out --metrics that need large networks",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error, 130 if interrupted."""
    return evaluate(parse(arguments(), argv, name="evaluate", text=__doc__))


def arguments() -> type[Grouped[Arguments]]:
    """The type that a command line is parsed into."""
    return grouped(Arguments, _GROUPS)


def evaluate(arguments: Arguments) -> int:
    """Computes the metrics, prints and writes them; returns the exit code.

    Raises UserError, where possible before any work.
    """
    check_options(arguments)
    # Imported late, so that --help is fast.
    from xpsr_jax.evaluation.choices import choose_metrics, least_side
    from xpsr_jax.evaluation.matching import match_images, name_methods, name_of_set, parse_match, set_folders
    from xpsr_jax.evaluation.paper import find_set, scores_of_set
    from xpsr_jax.evaluation.report_files import manifest_of, read_others, write_report, write_scores
    from xpsr_jax.evaluation.scoring import ImageReport, default_batch_size, score
    from xpsr_jax.evaluation.tables import Evaluation, print_scores
    from xpsr_jax.inference.compilation import use_compilation_cache

    protocol = PROTOCOLS[arguments.protocol]
    metrics = choose_metrics(arguments.metrics, protocol)
    asked = "none" if arguments.set_name is None else arguments.set_name
    named = None if asked.casefold() == "none" else find_set(asked)
    match = parse_match(arguments.match) if arguments.match is not None else None
    crop_to_multiple = arguments.crop_to_multiple or 1
    for folder in (arguments.output, arguments.json and arguments.json.parent):
        if folder is not None:
            check_writable(folder)
    others = read_others(arguments.beside) if arguments.beside else {}
    methods = name_methods(arguments.restored)
    reference, lr = set_folders(arguments.reference)
    report = ImageReport(arguments.on_error)
    comparisons = match_images(
        methods,
        reference,
        arguments.lr or lr,
        match=match,
        crop_to_multiple=crop_to_multiple,
        least_side=least_side(metrics, protocol),
        unreadable=report.failed if arguments.on_error == "skip" else None,
    )
    if "fid" in metrics and len(comparisons) < 2:
        raise UserError("FID needs at least two images; choose other metrics with --metrics")

    use_compilation_cache()
    with tqdm(total=len(comparisons), desc="measuring", unit="image", disable=None) as bar:

        def show(names: Sequence[str]) -> None:
            bar.set_postfix_str(printable(names[-1]), refresh=False)
            bar.update(len(names))

        scores = score(
            comparisons,
            list(methods),
            protocol,
            metrics,
            batch_size=arguments.batch_size or default_batch_size(),
            on_images=show,
            report=report,
        )
    for reason in report.failed.values():
        say(f"error: {reason}", to_stderr=True)
    comparisons = [each for each in comparisons if each.name not in report.failed]
    if report.transparent:
        seen = "they were compared on a white background"
        say(f"{report.transparent} of {len(comparisons)} images are partly transparent; {seen}")
    guessed = name_of_set(reference) if arguments.set_name is None else None
    paper = scores_of_set(named) if named else {}
    result = Evaluation(scores, protocol, metrics, named or guessed, others, paper, crop_to_multiple)
    print_scores(result)
    if guessed:
        say(f"{guessed}: by the folder's name; --set {guessed} also shows the paper's scores")
    if arguments.json is not None:
        write_scores(arguments.json, result)
    if arguments.output is not None:
        manifest = manifest_of(arguments.restored, arguments.reference, result, comparisons, match=arguments.match)
        write_report(arguments.output, result, comparisons, manifest)
        say(f"report: {arguments.output / 'report.html'}")
    if report.failed:
        total = len(comparisons) + len(report.failed)
        say(f"{len(comparisons)} of {total} images measured; {len(report.failed)} skipped")
    return 1 if report.failed else 0
