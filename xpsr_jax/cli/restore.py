"""Restores low-resolution photographs with XPSR.

    xpsr restore photo.png folder/ --output restored --captions captions.jsonl

Each INPUT is an image, a folder of images (with its subfolders) or a pattern such as "photos/**/*.jpg". Restored images
are written into the output folder with the same names. Captions are JSON lines {"image": path, "high": what is in the
picture, "low": how it is degraded}. If the work was interrupted, run the same command again to resume.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from xpsr_jax.cli.groups import Grouped, Groups, grouped, parse
from xpsr_jax.cli.model_options import ModelOptions
from xpsr_jax.cli.progress import ImagesBar
from xpsr_jax.cli.run import command
from xpsr_jax.cli.sampling_options import SamplingOptions, default_options
from xpsr_jax.config import SAMPLING_PRESETS, Mesh, PresetName, ProcessMode, Sampling
from xpsr_jax.errors import UserError, say
from xpsr_jax.files import check_writable
from xpsr_jax.images.limits import MAX_PIXELS, limit_from_millions
from xpsr_jax.images.writing import Format
from xpsr_jax.locks import locked_folder

if TYPE_CHECKING:
    import jax

    from xpsr_jax.images.listing import Input
    from xpsr_jax.inference.job import Describe, FolderJob, Policy, Task

_PRESETS = ",".join(SAMPLING_PRESETS)


@dataclass(frozen=True)
class Arguments:
    """The command line. The default of a setting is the preset's; without a preset, the model's own.

    Attributes:
        inputs: Images, folders of images, patterns.
        output: Folder for the restored images. Subfolders of an input folder are kept.
        model: The model.
        captions: JSON lines with the images' captions. Image paths are relative to this file, or to the input folder.
        missing_captions: What to do with an image without captions. error: stop before any work. empty: restore it
            without captions. measured: write the low-level caption from measurements of the image.
        high_captions: Whether to use the captions of the content (paper, Table 2).
        low_captions: Whether to use the captions of the quality (paper, Table 2).
        preset: Set all sampling options: those of the paper, those of its released code, fast ones with a fifth of the
            cost, or those for models of few steps.
        sampling: How images are restored.
        format: File format of the restored images. JPEG has no transparency.
        quality: Quality of JPEG and WebP, 1 to 100.
        max_megapixels: Images that are larger, before or after restoring, are refused. inf: no limit.
        seed: Seed of the random numbers. The result depends only on the image, the seed and the settings, not on the
            other images.
        batch_size: Images of the same size, or tiles of a large one, to restore in one batch on each device.
        on_error: What to do if an image cannot be read, restored or written. skip: it is reported, and the exit code is
            1.
        overwrite: Replace existing images in the output folder that were made with other settings, from an input or a
            model that has changed, or by another program. Images that the same command has already made are kept, so
            that it can be resumed.
        dry_run: Show what would be done and its cost: sizes, tiles, evaluations, memory. Nothing is written.
        compare: Also write a web page, as one file, with a slider between each image and its result. With N processes,
            each writes its own page: FILE-0-of-N.html.
        distributed: Whether other processes run the same command, and each restores a part of the images. auto: if JAX
            finds a cluster, or --processes is set.
        processes: Number of processes.
        process: Number of this process, from 0.
        coordinator: Address of the first process. Not needed with --processes and --process.
    """

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...", help_behavior_hint="")]
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = ModelOptions()
    captions: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    missing_captions: Literal["error", "empty", "measured"] = "error"
    high_captions: bool = True
    low_captions: bool = True

    preset: Annotated[
        PresetName | None,
        tyro.conf.arg(
            metavar=f"{{{','.join(SAMPLING_PRESETS)}}}", help_behavior_hint="(default: the model's own settings)"
        ),
    ] = None
    # Without FlagConversionOff, the option would be --karras and --no-karras.
    sampling: Annotated[SamplingOptions, tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff] = SamplingOptions()

    format: Format = "png"
    quality: int = 95
    max_megapixels: float = MAX_PIXELS / 1e6
    seed: int = 0
    batch_size: int = 1
    on_error: Literal["stop", "skip"] = "stop"
    overwrite: bool = False
    dry_run: bool = False
    compare: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html", help_behavior_hint="(default: none)")] = None

    distributed: ProcessMode = "auto"
    processes: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: as JAX finds it)")] = None
    process: Annotated[int | None, tyro.conf.arg(metavar="I", help_behavior_hint="(default: as JAX finds it)")] = None
    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="(default: as JAX finds it)")
    ] = None


_TILES = ("tile_size", "tile_overlap", "tile_weights", "vae_tile_size", "first_stage_tile")
_SAMPLING = (field.name for field in dataclasses.fields(Sampling) if field.name not in _TILES)
_GROUPS: Groups = {
    "files": ("inputs", "output", "format", "quality", "max_megapixels", "on_error", "overwrite", "compare", "dry_run"),
    "captions": ("captions", "missing_captions", "high_captions", "low_captions"),
    "model": (),
    "sampling": ("preset", "seed", *(f"sampling.{name}" for name in _SAMPLING)),
    "tiles": tuple(f"sampling.{name}" for name in _TILES),
    "devices": ("batch_size", "distributed", "processes", "process", "coordinator"),
}


@command(
    interrupted="interrupted; the images written so far are complete",
    lower="lower --batch-size, --tile or --vae-tile; --dtype bfloat16 halves the memory",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error, 130 if interrupted."""
    return restore(read_arguments(argv))


def read_arguments(argv: Sequence[str] | None) -> Arguments:
    """Parses the command line. Defaults of sampling are the preset's, otherwise the model's. Raises UserError."""
    words = sys.argv[1:] if argv is None else argv
    return parse(arguments(words), words, name="restore", text=__doc__)


def arguments(words: Sequence[str] = ()) -> type[Grouped[Arguments]]:
    """The type that a command line is parsed into. Defaults of sampling are those of its model and preset."""
    return grouped(Arguments, _GROUPS, sampling=default_options(words))


def restore(arguments: Arguments) -> int:
    """Restores the images and prints the results; returns the exit code. Raises UserError."""
    from xpsr_jax.distributed import part_of
    from xpsr_jax.images.listing import list_inputs
    from xpsr_jax.inference.compilation import use_compilation_cache, use_tpu_flags
    from xpsr_jax.inference.files import output_paths
    from xpsr_jax.inference.job import Policy

    if not arguments.dry_run:
        use_compilation_cache()
    use_tpu_flags()
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    if not 1 <= arguments.quality <= 100:
        raise UserError(f"--quality must be between 1 and 100, not {arguments.quality}")
    policy = Policy(
        max_pixels=limit_from_millions("--max-megapixels", arguments.max_megapixels),
        seed=arguments.seed,
        format=arguments.format,
        quality=arguments.quality,
        skip_errors=arguments.on_error == "skip",
    )
    share, shares = part_of(
        arguments.distributed,
        coordinator=arguments.coordinator,
        processes=arguments.processes,
        process=arguments.process,
    )
    inputs = list_inputs(arguments.inputs, exclude=arguments.output)
    outputs = output_paths(inputs, arguments.output, arguments.format)
    # From here on, this process ignores the images of the other processes.
    inputs, outputs = inputs[share::shares], outputs[share::shares]
    tasks = make_tasks(inputs, outputs, arguments)
    if arguments.dry_run:
        return plan(tasks, arguments, policy)
    check_writable(arguments.output)
    with locked_folder(arguments.output, shared=shares > 1):
        return restore_tasks(tasks, arguments, policy, share, shares)


def plan(tasks: "list[Task]", arguments: Arguments, policy: "Policy") -> int:
    """Prints what `restore_tasks` would do; returns the exit code."""
    import jax

    from xpsr_jax.cli.dry_run import show_plan
    from xpsr_jax.inference.restore import Restorer

    job, model = make_job(tasks, arguments, policy), arguments.model.load(shapes_only=True)
    devices = jax.local_devices()
    say(f"{len(job.todo)} of {len(tasks)} images would be restored to {arguments.output} on {devices_text(devices)}.")
    sampling, batch_size = arguments.sampling.chosen(), arguments.batch_size
    together = Restorer(model, sampling, batch_size=batch_size * len(devices))
    alone = Restorer(model, sampling, batch_size=batch_size)
    on_cpu = devices[0].platform == "cpu"
    return 0 if show_plan(together, alone, job.todo, policy, on_cpu=on_cpu) else 1


def devices_text(devices: "Sequence[jax.Device]") -> str:
    """A text for devices of the same kind."""
    kind = devices[0].device_kind
    return f"{len(devices)} devices ({kind})" if len(devices) > 1 else f"one device ({kind})"


def make_job(tasks: "list[Task]", arguments: Arguments, policy: "Policy") -> "FolderJob":
    """The job, which knows the images that are already restored. Raises UserError."""
    from xpsr_jax.inference.files import last_change
    from xpsr_jax.inference.job import FolderJob
    from xpsr_jax.weights import hub

    return FolderJob(
        tasks,
        arguments.output,
        policy,
        used_settings(arguments.model, arguments.sampling.chosen()),
        describe=measured(),
        overwrite=arguments.overwrite,
        # The settings contain only the path of the model. Its files may have changed since.
        changed=last_change([hub.local(each) for each in arguments.model.folders]) if arguments.overwrite else 0.0,
    )


def restore_tasks(tasks: "list[Task]", arguments: Arguments, policy: "Policy", share: int, shares: int) -> int:
    """Restores the images of one of `shares` processes, while no other job writes to the output folder."""
    import jax

    from xpsr_jax.inference.job import Failed
    from xpsr_jax.inference.restore import Restorer
    from xpsr_jax.sharding import make_mesh

    job = make_job(tasks, arguments, policy)
    page = arguments.compare
    if page:
        page = page.with_stem(f"{page.stem}-{share}-of-{shares}") if shares > 1 else page
        check_writable(page.parent)

    model = arguments.model.load()
    if shares > 1:
        say(f"This is process {share} of {shares}, with {len(tasks)} of the images.")
    if job.done:
        say(f"{len(job.done)} of {len(tasks)} images are already restored.")
    devices = jax.local_devices()
    mesh = make_mesh(Mesh(data=-1, fsdp=1), devices) if len(devices) > 1 else None
    restorer = Restorer(model, arguments.sampling.chosen(), batch_size=arguments.batch_size, mesh=mesh)
    bar = ImagesBar(len(job.todo), quiet=bool(share))
    try:
        for event in job.run(restorer, on_progress=bar.show):
            bar.count()
            if isinstance(event, Failed):
                say(f"error: {event.message}", to_stderr=True)
    finally:
        took = bar.end(len(job.todo) - len(job.failed))
    if shares == 1:
        job.tidy()
    skipped = f"; {len(job.failed)} skipped" if job.failed else ""
    say(f"{len(tasks) - len(job.failed)} of {len(tasks)} images restored to {arguments.output}{skipped}{took}")
    if page:
        say(f"Comparison of {job.compare(page)} images: {page}")
    return 1 if job.failed else 0


def make_tasks(inputs: "Sequence[Input]", outputs: Sequence[Path], arguments: Arguments) -> "list[Task]":
    """Each input with its captions, or None if they will be measured. Raises UserError for missing captions."""
    from xpsr_jax.data.captions import Caption
    from xpsr_jax.inference.input_captions import find_captions
    from xpsr_jax.inference.job import Task

    found = find_captions(inputs, arguments.captions)
    missing = [each.path for each, caption in zip(inputs, found, strict=True) if caption is None]
    if missing and arguments.missing_captions == "error":
        where = f"in {arguments.captions}" if arguments.captions else "(no --captions FILE)"
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"no captions for {missing[0]}{others} {where}: add captions, or use --missing-captions empty or "
            "--missing-captions measured"
        )

    def used(caption: Caption | None) -> Caption | None:
        if caption is None and arguments.missing_captions == "measured" and arguments.low_captions:
            return None
        caption = caption or Caption()
        return Caption(caption.high if arguments.high_captions else "", caption.low if arguments.low_captions else "")

    return [
        Task(each.path, output, used(caption), str(each.name))
        for each, output, caption in zip(inputs, outputs, found, strict=True)
    ]


def measured() -> "Describe":
    """A function that makes the low-level caption from measurements of an image."""
    from xpsr_jax.caption.measured import describe_quality
    from xpsr_jax.data.captions import Caption

    return lambda rgb: Caption("", describe_quality(rgb))


def used_settings(model: ModelOptions, sampling: Sampling) -> dict[str, Any]:
    """All settings that change the restored images, except captions and file format."""
    from xpsr_jax.weights import hub

    folders = [
        str(folder.resolve() if hub.hub_name(folder) is None else hub.pinned(folder)) for folder in model.model
    ] or ["the shipped one"]
    return {
        "model": folders,
        "variant": model.variant,
        "dtype": model.dtype,
        "first_stage": model.first_stage,
    } | dataclasses.asdict(sampling)
