"""Prepares data for training and evaluation.

Run the same command again to resume interrupted work. The result is the same.
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
# Most pairs that are lost when the work is interrupted.
_PAIRS_IN_A_PIECE = 16
# Options that do not change the result, or whose effect is recorded otherwise.
_FREE = ("output", "workers", "on_error", "exclude_of")


@dataclass(frozen=True)
class Photographs:
    """Options for commands that read photographs.

    Attributes:
        input: Folder of photographs (with subfolders), ArrayRecord files, a TFDS dataset or ready-made pairs.
        output: Folder to write. It must not exist, unless the same command wrote it.
        captions: JSON lines of captions by image path (default: captions.jsonl in the folder).
        lr_captions: The same for degraded versions of the photographs (default: none).
        missing_captions: What to do with an image without a caption. error: stop. empty: use an empty one.
        exclude: Names, paths or subfolders to leave out.
        exclude_of: Training config (tiny, my/config.py) whose images.exclude is left out too.
        limit: Number of images to use, counted from the first (default: all).
        minimum_pixels: Photographs with fewer pixels are reported and left out.
        minimum_bytes: Smaller files are reported and left out. The released training set has 102400, for PNG files.
        on_error: What to do if an image cannot be read. skip: it is reported and left out, and the exit code is 1.
            stop: the work ends.
        workers: Number of processes.
    """

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    captions: Path | None = None
    lr_captions: Path | None = None
    missing_captions: Literal["error", "empty"] = "error"
    exclude: tuple[str, ...] = ()
    exclude_of: Annotated[str | None, tyro.conf.arg(metavar="CONFIG")] = None
    limit: Count | None = None
    minimum_pixels: Annotated[int, Range(0)] = 384**2
    minimum_bytes: Annotated[int, Range(0)] = 0
    on_error: Literal["skip", "stop"] = "skip"
    workers: Count = os.cpu_count() or 1


@dataclass(frozen=True)
class Records(Photographs):
    """Writes photographs and captions into ArrayRecord files. The bytes of the image files are kept.

    Attributes:
        format: Plain ArrayRecord files, or a TFDS dataset of them.
        images_per_file: Photographs per file.
    """

    format: Literal["array_record", "tfds"] = "array_record"
    images_per_file: Count = 1000


@dataclass(frozen=True)
class Pairs(Photographs):
    """Writes ready-made pairs in the layout of the released training set, dataset_0/HR/..., dataset_0/LR/...

    Attributes:
        rounds: Number of crops of each photograph, each with its own degradation and in its own dataset_* folder.
        crop_size: Side of HR, and of the enlarged LR, in pixels.
        degradation: The released training set's degradation, or a milder one.
        target: sharpened: HR is sharpened before it is degraded, as in the released training set. plain: HR is the
            photograph itself, LR the same as with sharpened.
        low_captions: drawn: write low-level captions from the random degradation. file: use those of the files.
        first_stage: Folder of an ESRGAN network, or model folder that has one. Its outputs for the LR images are
            written too, for training with data.first_stage=stored. This uses one process, and ignores --workers.
        seed: Seed of the random crops and degradations.
    """

    rounds: Count = 10
    crop_size: Count = 512
    degradation: Literal["xpsr", "mild"] = "xpsr"
    target: Literal["sharpened", "plain"] = "sharpened"
    low_captions: Literal["drawn", "file"] = "drawn"
    first_stage: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0


@dataclass(frozen=True)
class Validation(Photographs):
    """Writes pairs for evaluation: HR of 512 and LR of 128 pixels. DIV2K's 100 validation images give 3000 pairs.

    Attributes:
        crops: Pairs per photograph.
        crop_size: Side of HR in pixels. LR has a quarter of it.
        degradation: The released training set's degradation, or a milder one.
        seed: Seed of the random crops and degradations.
    """

    crops: Count = 30
    crop_size: Count = 512
    degradation: Literal["xpsr", "mild"] = "xpsr"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0


@dataclass(frozen=True)
class Embeddings:
    """Computes the text embeddings of all captions, so that training needs no text encoder (data.embeddings).

    Attributes:
        input: Caption files (.jsonl), and photographs with captions in any supported format.
        output: Folder to write. It must not exist.
        model: Model folder with text_encoder/, the base of the training. It also needs tokenizer/, unless that is
            CLIP's own.
        dtype: Number format. At CLIP's size, a caption takes 236 KB in float32, and half of it in float16.
    """

    input: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    model: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    dtype: Literal["float32", "float16"] = "float32"


_FILES = ("input", "output", "on_error")
_CAPTIONS = ("captions", "lr_captions", "missing_captions")
_PHOTOGRAPHS = ("exclude", "exclude_of", "limit", "minimum_pixels", "minimum_bytes")
_DEVICES = ("workers",)


def arguments() -> Any:
    """The type that a command line is parsed into."""
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
        "pairs": ("rounds", "crop_size", "degradation", "target", "first_stage", "seed"),
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
    interrupted="interrupted; run the same command again to resume",
    lower="lower --workers",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error or for broken images, 130 if interrupted."""
    chosen = parse(arguments(), argv, name="prepare", text=__doc__)
    check_options(chosen)
    from xpsr_jax.preparation.pieces import REPORT

    outcome = prepare_embeddings(chosen) if isinstance(chosen, Embeddings) else prepare(chosen)
    say(f"{outcome.written} written to {chosen.output}")
    if outcome.small or outcome.broken:
        broken, small = len(outcome.broken), len(outcome.small)
        say(f"left out: {broken} broken, {small} too small; listed in {chosen.output / REPORT}")
    return 1 if outcome.broken else 0


def prepare(command: Records | Pairs | Validation) -> "Outcome":
    """Writes stored photographs or pairs."""
    # Imported late, so that --help is fast.
    from xpsr_jax.config import Images, load_config
    from xpsr_jax.data.offline_pairs import FIRST_STAGE_RECORD
    from xpsr_jax.data.sample_sources import open_sample_source
    from xpsr_jax.json_files import write_json
    from xpsr_jax.preparation.pieces import Choice, cut, work
    from xpsr_jax.preparation.write_pairs import WritePairs, check_names, write_evaluation_captions

    held_out = load_config(command.exclude_of).images if command.exclude_of else Images()
    exclude = tuple(dict.fromkeys(command.exclude + held_out.exclude))
    source = open_sample_source(
        command.input,
        exclude=exclude,
        missing_exclusions=held_out.missing_exclusions,
        captions=command.captions,
        lr_captions=command.lr_captions,
        missing=command.missing_captions,
    )
    count = len(source) if command.limit is None else min(len(source), command.limit)
    names = getattr(source, "names", ())
    settings = {name: value for name, value in dataclasses.asdict(command).items() if name not in _FREE}
    settings |= {
        "exclude": list(exclude),
        "command": type(command).__name__.lower(),
        "images": count,
        "names": _digest(names),
    }
    choice = Choice(command.minimum_pixels, command.minimum_bytes, command.on_error)
    if isinstance(command, Records):
        return _prepare_records(command, source, choice, count, settings)
    evaluation = isinstance(command, Validation)
    rounds = command.crops if isinstance(command, Validation) else command.rounds
    check_names(names, rounds=rounds, evaluation=evaluation)
    drawn = isinstance(command, Validation) or command.low_captions == "drawn"
    sharpened = isinstance(command, Validation) or command.target == "sharpened"
    data = DataConfig(
        crop_size=command.crop_size,
        degradation=dataclasses.replace(_DEGRADATIONS[command.degradation], sharpened_target=sharpened),
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
    """The folder of a first stage, and its fingerprint. Raises UserError if it does not fit the data."""
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
        import_tfds()  # if it is not installed, fail now and not at the end
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
    """Writes the embeddings of all captions."""
    # Imported here, because they import JAX. The other commands and their processes do not need it.
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
    """The defaults of all options that have one."""
    fields = dataclasses.fields(command)
    return {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


def _has_lr(source: "StoredSource") -> bool:
    """Whether the images have LR images, according to the first one that can be read."""
    for index in range(len(source)):
        with contextlib.suppress(UserError):  # `Choice` reports it later.
            return source.record(index).lr is not None
    return False


def _digest(names: Sequence[str]) -> str:
    """A hash of the images' names, which detects changes."""
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
