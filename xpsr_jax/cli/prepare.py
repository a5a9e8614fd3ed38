"""Prepares data for training and evaluation.

Work that was stopped goes on where it was when the same command is started again; the result is the same.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from xpsr_jax.cli.groups import Groups, grouped, parse, subcommands
from xpsr_jax.cli.run import check_options, command
from xpsr_jax.data.config import MILD, XPSR, DataConfig
from xpsr_jax.errors import UserError, say
from xpsr_jax.serialisation import Range

if TYPE_CHECKING:
    from xpsr_jax.data.sample_sources import StoredSource
    from xpsr_jax.preparation.pieces import Choice, Outcome

Count = Annotated[int, Range(1)]
_DEGRADATIONS = {"xpsr": XPSR, "mild": MILD}
# Pairs to be done again when the work is stopped.
_PAIRS_IN_A_PIECE = 16
# What does not decide the result.
_FREE = ("output", "workers", "on_error")


@dataclass(frozen=True)
class Photographs:
    """What the work is about.

    Attributes:
        input: Folder of photographs, at any depth; also ArrayRecord files, a TFDS dataset or ready-made pairs.
        output: Folder to make; it must not exist, unless the same command made it.
        captions: JSON lines of captions by image path (default: captions.jsonl in the folder).
        lr_captions: The same of degraded versions of the photographs (default: none).
        missing_captions: An image without a caption is an error, or has an empty one.
        exclude: Names, paths or subfolders to leave out.
        limit: The first so many images only (default: all).
        minimum_pixels: Smaller photographs are left out and reported.
        minimum_bytes: So are smaller files; the released training set's limit is 102400, of PNG files.
        on_error: An image that cannot be read is left out and reported, and the exit code is 1; or it ends the work.
        workers: Processes.
    """

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    captions: Path | None = None
    lr_captions: Path | None = None
    missing_captions: Literal["error", "empty"] = "error"
    exclude: tuple[str, ...] = ()
    limit: Count | None = None
    minimum_pixels: Annotated[int, Range(0)] = 384**2
    minimum_bytes: Annotated[int, Range(0)] = 0
    on_error: Literal["skip", "stop"] = "skip"
    workers: Count = os.cpu_count() or 1


@dataclass(frozen=True)
class Records(Photographs):
    """Photographs and captions into ArrayRecord files, with images as they are stored.

    Attributes:
        format: Plain ArrayRecord files, or a TFDS dataset of them.
        images_per_file: Photographs in a file.
    """

    format: Literal["array_record", "tfds"] = "array_record"
    images_per_file: Count = 1000


@dataclass(frozen=True)
class Pairs(Photographs):
    """Ready-made pairs in the layout of the released training set, dataset_0/HR/..., dataset_0/LR/...

    Attributes:
        rounds: How often each photograph is degraded, each time another crop of it: one dataset_* folder each.
        crop_size: Side of HR, and of the enlarged LR, in pixels.
        degradation: The released training set's, or the milder one.
        low_captions: Low-level captions are written from the degradation that was drawn, or are those of the files.
        first_stage: An ESRGAN network's folder, or a model folder that has one: its pictures of the LR images are
            written too, for a training with data.first_stage=stored. In one process, whatever --workers says.
        seed: Another one draws other crops and degradations.
    """

    rounds: Count = 10
    crop_size: Count = 512
    degradation: Literal["xpsr", "mild"] = "xpsr"
    low_captions: Literal["drawn", "file"] = "drawn"
    first_stage: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0


@dataclass(frozen=True)
class Validation(Photographs):
    """Pairs to evaluate on: HR of 512 and LR of 128 pixels; of DIV2K's 100 validation images 3000.

    Attributes:
        crops: Pairs of each photograph.
        crop_size: Side of HR in pixels; LR's is a quarter.
        degradation: The released training set's, or the milder one.
        seed: Another one draws other crops and degradations.
    """

    crops: Count = 30
    crop_size: Count = 512
    degradation: Literal["xpsr", "mild"] = "xpsr"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0


@dataclass(frozen=True)
class Embeddings:
    """Text embeddings of all captions, so that training needs no text encoder (data.embeddings).

    Attributes:
        input: Files of captions (.jsonl), and whatever holds photographs with captions.
        output: Folder to make; it must not exist.
        model: Model folder with text_encoder/, and tokenizer/ unless it is CLIP's own: the base of the training.
        dtype: Of a caption 236 KB or half of it, at CLIP's size.
    """

    input: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    model: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    dtype: Literal["float32", "float16"] = "float32"


_FILES = ("input", "output", "on_error")
_CAPTIONS = ("captions", "lr_captions", "missing_captions")
_PHOTOGRAPHS = ("exclude", "limit", "minimum_pixels", "minimum_bytes")
_DEVICES = ("workers",)


def arguments() -> Any:
    """What a command line is parsed to."""
    records: Groups = {
        "files": (*_FILES, "format", "images_per_file"),
        "captions": _CAPTIONS,
        "photographs": _PHOTOGRAPHS,
        "devices": _DEVICES,
    }
    pairs: Groups = {
        "files": _FILES,
        "captions": (*_CAPTIONS, "low_captions"),
        "photographs": _PHOTOGRAPHS,
        "pairs": ("rounds", "crop_size", "degradation", "first_stage", "seed"),
        "devices": _DEVICES,
    }
    validation: Groups = {
        "files": _FILES,
        "captions": _CAPTIONS,
        "photographs": _PHOTOGRAPHS,
        "pairs": ("crops", "crop_size", "degradation", "seed"),
        "devices": _DEVICES,
    }
    return subcommands(
        records=grouped(Records, records),
        pairs=grouped(Pairs, pairs),
        validation=grouped(Validation, validation),
        embeddings=grouped(Embeddings, {}),
    )


@command(
    interrupted="interrupted; the same command goes on from here",
    lower="lower --workers",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 if an image was broken or all failed, 130 if interrupted."""
    chosen = parse(arguments(), argv, name="prepare", text=__doc__)
    check_options(chosen)
    from xpsr_jax.preparation.pieces import REPORT

    outcome = prepare_embeddings(chosen) if isinstance(chosen, Embeddings) else prepare(chosen)
    say(f"{outcome.written} written to {chosen.output}")
    if outcome.small or outcome.broken:
        broken, small = len(outcome.broken), len(outcome.small)
        say(f"left out: {broken} broken, {small} too small; {chosen.output / REPORT} names them")
    return 1 if outcome.broken else 0


def prepare(command: Records | Pairs | Validation) -> "Outcome":
    """Stored photographs, or pairs of them."""
    # Imported late, so that --help is quick.
    from xpsr_jax.data.offline_pairs import FIRST_STAGE_RECORD
    from xpsr_jax.data.sample_sources import open_sample_source
    from xpsr_jax.json_files import write_json
    from xpsr_jax.preparation.pieces import Choice, cut, work
    from xpsr_jax.preparation.write_pairs import WritePairs, check_names, write_evaluation_captions

    source = open_sample_source(
        command.input,
        exclude=command.exclude,
        captions=command.captions,
        lr_captions=command.lr_captions,
        missing=command.missing_captions,
    )
    count = len(source) if command.limit is None else min(len(source), command.limit)
    names = getattr(source, "names", ())
    settings = {name: value for name, value in dataclasses.asdict(command).items() if name not in _FREE}
    settings |= {"command": type(command).__name__.lower(), "images": count, "names": _digest(names)}
    choice = Choice(command.minimum_pixels, command.minimum_bytes, command.on_error)
    if isinstance(command, Records):
        return _prepare_records(command, source, choice, count, settings)
    evaluation = isinstance(command, Validation)
    rounds = command.crops if isinstance(command, Validation) else command.rounds
    check_names(names, rounds=rounds, evaluation=evaluation)
    drawn = isinstance(command, Validation) or command.low_captions == "drawn"
    data = DataConfig(
        crop_size=command.crop_size,
        degradation=_DEGRADATIONS[command.degradation],
        low_caption_from="drawn" if drawn else "file",
    )
    first_stage: Path | None = None
    if isinstance(command, Pairs) and command.first_stage is not None:
        first_stage, settings["first_stage"] = _first_stage(command.first_stage, data)

    def finish(folder: Path, written: Path, outcomes: "Sequence[Outcome]") -> None:
        if evaluation:
            write_evaluation_captions(folder, outcomes)
        if first_stage is not None:
            write_json({"first_stage": settings["first_stage"]}, folder / FIRST_STAGE_RECORD)

    return work(
        command.output,
        WritePairs(source, choice, data, command.seed, count, evaluation, first_stage),
        cut(rounds * count, _PAIRS_IN_A_PIECE),
        settings=settings,
        defaults=_defaults(command),
        workers=1 if first_stage else command.workers,
        finish=finish,
        unit="pair",
    )


def _first_stage(named: Path, data: DataConfig) -> tuple[Path, str]:
    """The folder of a first stage, and its fingerprint. Raises UserError for one that does not fit."""
    from xpsr_jax.training.fingerprints import fingerprint
    from xpsr_jax.training.structure import named_first_stage, read_first_stage
    from xpsr_jax.weights.networks import FIRST_STAGE

    folder = named_first_stage(named)
    read_first_stage(folder, data.degradation.upscale)
    return folder, fingerprint(FIRST_STAGE, folder)


def _prepare_records(
    command: Records, source: "StoredSource", choice: "Choice", count: int, settings: dict[str, Any]
) -> "Outcome":
    from xpsr_jax.data.stored_records import import_tfds
    from xpsr_jax.preparation.pieces import cut, work
    from xpsr_jax.preparation.write_records import WriteRecords, write_tfds_metadata

    if command.format == "tfds":
        import_tfds()  # better missed now than at the end
    pieces = cut(count, command.images_per_file)
    pairs = _has_lr(source)

    def finish(folder: Path, written: Path, outcomes: "Sequence[Outcome]") -> None:
        if command.format == "tfds":
            write_tfds_metadata(folder, written, outcomes, pairs=pairs)

    return work(
        command.output,
        WriteRecords(source, choice, command.format, len(pieces), pairs),
        pieces,
        settings=settings,
        defaults=_defaults(command),
        workers=command.workers,
        finish=finish,
    )


def prepare_embeddings(command: Embeddings) -> "Outcome":
    """Embeddings of all captions."""
    # Imported here: they bring JAX, which the other commands and their processes do without.
    from xpsr_jax.config import Networks
    from xpsr_jax.data.captions import read_captions
    from xpsr_jax.data.sample_sources import open_sample_source
    from xpsr_jax.preparation import write_embeddings
    from xpsr_jax.preparation.pieces import cut, work
    from xpsr_jax.training.export import tokenizer_of
    from xpsr_jax.training.fingerprints import fingerprint
    from xpsr_jax.weights import hub
    from xpsr_jax.weights.networks import NETWORKS, load_network
    from xpsr_jax.weights.sources import find_components

    network = NETWORKS["text_encoder"]
    model = hub.local(command.model)
    folder = find_components(model).get("text_encoder", model / network.subfolder)
    tokenizer = tokenizer_of(Networks(base=(command.model,)))
    captions = [
        caption
        for path in command.input
        for caption in (
            read_captions(path).values() if path.suffix == ".jsonl" else open_sample_source(path).captions()
        )
    ]
    ids, keys = write_embeddings.distinct_captions(captions, tokenizer)
    text_encoder = fingerprint(network, folder)
    encode = write_embeddings.encoder_of(load_network(network, folder))
    return work(
        command.output,
        write_embeddings.WriteEmbeddings(ids, encode, command.dtype),
        cut(len(ids), write_embeddings.ROWS),
        settings={"captions": write_embeddings.digest(ids), "text_encoder": text_encoder, "dtype": command.dtype},
        workers=1,
        finish=lambda folder, *_: write_embeddings.write_description(folder, keys=keys, text_encoder=text_encoder),
        unit="caption",
    )


def _defaults(command: Photographs) -> dict[str, Any]:
    """Of the options that have one."""
    fields = dataclasses.fields(command)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _has_lr(source: "StoredSource") -> bool:
    """Whether images come with their LR images: what the first says that can be read."""
    for index in range(len(source)):
        with contextlib.suppress(UserError):  # `Choice` deals with it.
            return source.record(index).lr is not None
    return False


def _digest(names: Sequence[str]) -> str:
    """Tells other images from these."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
