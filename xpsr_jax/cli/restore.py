"""Restores low-resolution photographs with XPSR.

python sample.py photo.png folder/ --output restored --captions captions.jsonl

Each INPUT is an image, a folder of images (searched with its subfolders) or a pattern such as "photos/**/*.jpg".
Restored images are in the output folder under the same names. Captions are JSON lines {"image": path, "high": what is
in the picture, "low": how it is degraded}. When the work is stopped, the same command goes on.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from tqdm import tqdm

import xpsr_jax
from xpsr_jax.assets import TINY_MODEL
from xpsr_jax.caption.measured import describe_quality
from xpsr_jax.cli.run import command
from xpsr_jax.config import Mesh, ProcessMode, Sampling
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.distributed import part_of
from xpsr_jax.errors import UserError
from xpsr_jax.files import check_writable
from xpsr_jax.images.listing import Input, list_inputs
from xpsr_jax.images.picture import Picture
from xpsr_jax.images.reading import MAX_PIXELS, limit_from_millions, read_picture
from xpsr_jax.images.writing import Format
from xpsr_jax.inference.compare import write_comparison
from xpsr_jax.inference.compilation import use_compilation_cache, use_tpu_flags, with_fast_convolutions
from xpsr_jax.inference.files import checked_size, last_change, not_written, output_paths, write_restored
from xpsr_jax.inference.manifest import Manifest
from xpsr_jax.inference.restore import Restorer, not_a_number
from xpsr_jax.inference.settings import choose_sampling
from xpsr_jax.sharding import make_mesh


def _setting(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the preset's)")


@dataclass(frozen=True)
class Arguments:
    """Settings left out are the preset's; without a preset, the model's own."""

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...", help_behavior_hint="")]
    """Images, folders of images, patterns."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder for the restored images; subfolders of an input folder are kept."""
    model: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="DIR...", help_behavior_hint="(default: the one that ships with the package)"),
    ] = ()
    """Model folder, or single file of Stable Diffusion. Of several, a later one's components are taken first: Stable
    Diffusion 1.5's, then XPSR's."""
    variant: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the plain files)")] = (
        None
    )
    """Variant of the weight files, such as fp16 for model.fp16.safetensors."""
    captions: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """JSON lines with the images' captions. Image paths are relative to this file, or to the input folder."""
    missing_captions: Literal["error", "empty", "measured"] = "error"
    """What to do about an image without captions: stop before the work begins, restore it without, or write the
    low-level one from measurements of the image."""
    high_captions: bool = True
    """Whether to use what the captions say of the content (paper, Table 2)."""
    low_captions: bool = True
    """Whether to use what the captions say of the quality (paper, Table 2)."""

    preset: Annotated[
        Literal["paper", "released"] | None,
        tyro.conf.arg(metavar="{paper,released}", help_behavior_hint="(default: the model's own)"),
    ] = None
    """All of the following settings as in the paper, or as in its released code."""
    sampler: Annotated[
        Literal["ddpm", "ddim", "dpm_solver", "unipc", "euler", "euler_ancestral"] | None,
        _setting("{ddpm,ddim,dpm_solver,unipc,euler,euler_ancestral}"),
    ] = None
    """How to get from noise to the image; docs/sampling.md compares them."""
    steps: Annotated[int | None, _setting("N")] = None
    """Sampling steps."""
    spacing: Annotated[Literal["leading", "trailing", "linspace"] | None, _setting("{leading,trailing,linspace}")] = (
        None
    )
    """Which noise levels the steps visit."""
    karras: Annotated[bool | None, _setting("{True,False}")] = None
    """Whether they are Karras' instead; of dpm_solver, unipc and euler."""
    eta: Annotated[float | None, _setting("0..1")] = None
    """Randomness of ddim."""
    strength: Annotated[float | None, _setting("0..1")] = None
    """Fraction of the steps to run, the last ones; below 1 the result keeps closer to the input."""
    guidance_scale: Annotated[float | None, _setting("S")] = None
    """How far to move away from the negative prompt. The paper's form: 0 turns it off; the released code's: 1 does."""
    guidance_form: Annotated[Literal["paper", "released"] | None, _setting("{paper,released}")] = None
    """positive + s (positive - negative), or negative + s (positive - negative)."""
    guidance_rescale: Annotated[float | None, _setting("0..1")] = None
    """How far to take back what guidance adds to the prediction's contrast."""
    guidance_interval: Annotated[tuple[float, float] | None, _setting("BEGIN END")] = None
    """Part of the steps with guidance, as fractions between 0 (noise) and 1 (image). Elsewhere it costs nothing."""
    conditioning_scale: Annotated[float | None, _setting("S")] = None
    """Strength of the ControlNet."""
    conditioning_interval: Annotated[tuple[float, float] | None, _setting("BEGIN END")] = None
    """Part of the steps with the ControlNet."""
    start: Annotated[Literal["lr", "noise", "lr_noised_twice"] | None, _setting("{lr,noise,lr_noised_twice}")] = None
    """Start from the noisy LR image (paper), from noise, or from the LR image noised twice (released code)."""
    positive: Annotated[str | None, _setting("WORDS")] = None
    """Words to append to every high-level caption; they are never cut. "" for none."""
    negative: Annotated[str | None, _setting("WORDS")] = None
    """High-level negative prompt. "" for an empty one (paper, Table 5)."""
    negative_low: Annotated[str | None, _setting("WORDS")] = None
    """Low-level negative prompt. The paper has the image's own low-level caption, the released code fixed words."""
    color_fix: Annotated[Literal["adain", "wavelet", "none"] | None, _setting("{adain,wavelet,none}")] = None
    """How to give the result the colours of the input."""
    upscale: Annotated[int | None, _setting("N")] = None
    """How many times larger the result is."""
    tile: Annotated[int | None, _setting("CELLS")] = None
    """Side of the tiles in which pictures of more than CELLS² latent cells (of 8 pixels) are sampled. 0: no tiles."""
    tile_overlap: Annotated[int | None, _setting("CELLS")] = None
    """By how much they overlap."""
    vae_tile: Annotated[int | None, _setting("CELLS")] = None
    """Side of the tiles in which larger pictures are encoded and decoded. 0: no tiles."""

    format: Format = "png"
    """Of the restored images. JPEG has no transparency."""
    quality: int = 95
    """Of JPEG and WebP, 1 to 100."""
    max_megapixels: float = MAX_PIXELS / 1e6
    """Larger images are refused, and those that would be larger when restored. inf: none."""
    seed: int = 0
    """The same image, seed and settings give the same result, whatever else is restored with it."""
    batch_size: int = 1
    """Images of one size, or tiles of a large one, to restore at once on each device."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of weights and computation."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be read, restored or written. Skipped ones are reported, and the exit code
    is 1."""
    overwrite: bool = False
    """Make images anew that the output folder already has: of other settings, of an input or a model that has changed
    since, or from elsewhere. Those that the same command would make again stay, so that it too can be stopped."""
    compare: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html", help_behavior_hint="(default: none)")] = None
    """Also write a web page, in one file, that shows each image before and after under a slider. Of N processes, each
    writes one of its share: FILE-0-of-N.html."""

    distributed: ProcessMode = "auto"
    """Whether the same command runs in other processes, each of which restores its share. auto: if JAX finds a cluster,
    or --processes says so."""
    processes: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: as JAX finds it)")] = None
    """How many there are."""
    process: Annotated[int | None, tyro.conf.arg(metavar="I", help_behavior_hint="(default: as JAX finds it)")] = None
    """Which one this is, from 0."""
    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="(default: as JAX finds it)")
    ] = None
    """Of the first process, where they meet; not needed with --processes and --process."""


@command(
    "sample.py",
    interrupted="sample.py: interrupted; the images written so far are complete",
    lower="lower --batch-size, --tile or --vae-tile; --dtype bfloat16 halves the memory",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 if anything went wrong, 130 if interrupted."""
    return run(tyro.cli(Arguments, args=argv, description=__doc__, prog="sample.py"))


def run(arguments: Arguments) -> int:
    use_compilation_cache()
    use_tpu_flags()
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    if not 1 <= arguments.quality <= 100:
        raise UserError(f"--quality must be between 1 and 100, not {arguments.quality}")
    max_pixels = limit_from_millions("--max-megapixels", arguments.max_megapixels)
    share, shares = part_of(
        arguments.distributed,
        coordinator=arguments.coordinator,
        processes=arguments.processes,
        process=arguments.process,
    )
    inputs = list_inputs(arguments.inputs, exclude=arguments.output)
    outputs = output_paths(inputs, arguments.output, arguments.format)
    # What others restore is their affair from here on: this process looks at none of it.
    inputs, outputs = inputs[share::shares], outputs[share::shares]
    captions = find_captions(inputs, arguments)
    manifest = Manifest(arguments.output)
    there = outputs_there(inputs, outputs, manifest, arguments.overwrite)
    check_writable(arguments.output)
    page = arguments.compare
    if page:
        page = page.with_stem(f"{page.stem}-{share}-of-{shares}") if shares > 1 else page
        check_writable(page.parent)

    folders = arguments.model or (TINY_MODEL,)
    model = with_fast_convolutions(xpsr_jax.load(*folders, dtype=jnp.dtype(arguments.dtype), variant=arguments.variant))
    if shares > 1:
        print(f"Process {share} of {shares}, with {len(inputs)} of the images.")
    print(f"Model: {', '.join(map(str, folders))}. {model.note}")
    if not arguments.model:
        print("This is the model that ships with the package: it is small and knows 42 photographs.")
    sampling = chosen_sampling(model.defaults, arguments)
    settings = [used_settings(sampling, caption, arguments) for caption in captions]
    changed = {i: found for i in there if (found := manifest.differences(outputs[i], settings[i]))}
    if arguments.overwrite:
        # The settings name the model's folder. Since then there may be another model in it.
        model_changed = last_change(folders)
        there = [i for i in there if i not in changed and outputs[i].stat().st_mtime > model_changed]
    elif changed:
        i, found = next(iter(changed.items()))
        raise UserError(
            f"{outputs[i]} exists already, made with other settings ({'; '.join(found)}): choose another "
            "--output, or --overwrite"
        )
    if there:
        print(f"{len(there)} of {len(inputs)} images were restored before.")
    devices = jax.local_devices()
    mesh = make_mesh(Mesh(data=-1, fsdp=1), devices) if len(devices) > 1 else None
    restorer = Restorer(model, sampling, batch_size=arguments.batch_size, mesh=mesh)

    failed: set[int] = set()

    def fail(i: int, message: str) -> None:
        if arguments.on_error == "stop":
            raise UserError(message)
        failed.add(i)
        tqdm.write(f"sample.py: {message}", file=sys.stderr)

    sizes = {}
    for i in sorted(set(range(len(inputs))) - set(there)):
        try:
            sizes[i] = checked_size(restorer, inputs[i].path, max_pixels, arguments.format)
        except UserError as error:
            fail(i, str(error))
    planned = list(sizes)
    with tqdm(total=len(planned) * restorer.steps, unit="step", disable=True if share else None) as bar:
        for batch in restorer.plan(list(sizes.values())):
            pictures: dict[int, Picture] = {}
            for i in (planned[j] for j in batch):
                try:
                    pictures[i] = read_picture(inputs[i].path, max_pixels=max_pixels)
                except UserError as error:
                    fail(i, str(error))
                    bar.update(restorer.steps)
            if not pictures:
                continue
            bar.set_postfix_str(inputs[min(pictures)].name.name)
            begin = time.perf_counter()
            restored = restorer(
                [picture.rgb for picture in pictures.values()],
                [captions[i] for i in pictures],
                seed=arguments.seed,
                on_steps=functools.partial(advance_bar, bar, len(pictures)),
            )
            seconds = (time.perf_counter() - begin) / len(pictures)
            results = dict(zip(pictures, restored, strict=True))
            wrong: dict[int, str] = {}
            for i, rgb in results.items():
                if rgb is None:
                    wrong[i] = not_a_number(str(inputs[i].path))
                    continue
                try:
                    write_restored(
                        outputs[i],
                        pictures[i],
                        rgb,
                        upscale=sampling.upscale,
                        format=arguments.format,
                        quality=arguments.quality,
                        when_complete=functools.partial(
                            manifest.add, outputs[i], source=inputs[i].path, settings=settings[i], seconds=seconds
                        ),
                    )
                except UserError as error:
                    wrong[i] = not_written(inputs[i].path, error, arguments.format)
            # Now that the rest of the batch is written.
            for i, message in wrong.items():
                fail(i, message)
    skipped = f"; {len(failed)} skipped" if failed else ""
    print(f"{len(inputs) - len(failed)} of {len(inputs)} images restored to {arguments.output}{skipped}")
    if page:
        read = functools.partial(read_picture, max_pixels=max_pixels)
        # What failed may have a result from before.
        shown = [i for i, output in enumerate(outputs) if i not in failed and output.exists()]
        write_comparison(page, ((str(inputs[i].name), read(inputs[i].path), read(outputs[i])) for i in shown))
        print(f"{len(shown)} images before and after: {page}")
    return 1 if failed else 0


def used_settings(sampling: Sampling, caption: Caption, arguments: Arguments) -> dict[str, Any]:
    """All that decides what an image becomes."""
    model = [str(folder.resolve()) for folder in arguments.model] or ["the shipped one"]
    files: dict[str, Any] = {"format": arguments.format}
    if arguments.format in ("jpeg", "webp"):
        files |= {"quality": arguments.quality}
    return (
        {"model": model, "variant": arguments.variant, "dtype": arguments.dtype, "seed": arguments.seed}
        | dataclasses.asdict(caption)
        | dataclasses.asdict(sampling)
        | files
    )


def advance_bar(bar: tqdm, images: int, steps: int) -> None:
    bar.update(images * steps)


def chosen_sampling(defaults: Sampling, arguments: Arguments) -> Sampling:
    return choose_sampling(
        defaults,
        arguments.preset,
        sampler=arguments.sampler,
        steps=arguments.steps,
        spacing=arguments.spacing,
        karras=arguments.karras,
        eta=arguments.eta,
        strength=arguments.strength,
        guidance_scale=arguments.guidance_scale,
        guidance_form=arguments.guidance_form,
        guidance_rescale=arguments.guidance_rescale,
        guidance_interval=arguments.guidance_interval,
        conditioning_scale=arguments.conditioning_scale,
        conditioning_interval=arguments.conditioning_interval,
        start=arguments.start,
        positive_words=arguments.positive,
        negative_high=arguments.negative,
        negative_low=arguments.negative_low,
        color_fix=arguments.color_fix,
        upscale=arguments.upscale,
        tile_size=arguments.tile,
        tile_overlap=arguments.tile_overlap,
        vae_tile_size=arguments.vae_tile,
    )


def outputs_there(inputs: Sequence[Input], outputs: Sequence[Path], manifest: Manifest, overwrite: bool) -> list[int]:
    """Which outputs are there already, made of these inputs. Raises if one was not, and is not to be overwritten."""
    existing = [i for i, output in enumerate(outputs) if output.exists()]
    reasons = {i: manifest.why_foreign(outputs[i], inputs[i].path) for i in existing}
    foreign = [(outputs[i], reason) for i, reason in reasons.items() if reason]
    if foreign and not overwrite:
        output, reason = foreign[0]
        others = f"; {len(foreign) - 1} others likewise" if len(foreign) > 1 else ""
        raise UserError(
            f"{output} exists already, and was not made of this input ({reason}){others}: choose another --output, "
            "or --overwrite"
        )
    return [i for i in existing if not reasons[i]]


def find_captions(inputs: Sequence[Input], arguments: Arguments) -> list[Caption]:
    """Each input's captions, by its path relative to the captions file, or else by its path in its input folder."""
    known = read_captions(arguments.captions) if arguments.captions else {}
    base = arguments.captions.resolve().parent if arguments.captions else Path()
    found = []
    missing = []
    for each in inputs:
        # A link goes by its own name first.
        places = (each.path.absolute(), each.path.resolve())
        names = [place.relative_to(base) for place in places if place.is_relative_to(base)]
        caption = next((known[name.as_posix()] for name in (*names, each.name) if name.as_posix() in known), None)
        if caption is None:
            missing.append(each.path)
            measured = arguments.missing_captions == "measured"
            caption = measured_caption(each.path, arguments) if measured else Caption("", "")
        found.append(
            Caption(caption.high if arguments.high_captions else "", caption.low if arguments.low_captions else "")
        )
    if missing and arguments.missing_captions == "error":
        where = f"in {arguments.captions}" if arguments.captions else "(no --captions FILE)"
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"no captions for {missing[0]}{others} {where}: add them, or --missing-captions empty to restore without, "
            "or --missing-captions measured"
        )
    return found


def measured_caption(path: Path, arguments: Arguments) -> Caption:
    """What measurements say of the quality; nothing if the image cannot be read, which is told when it is restored."""
    max_pixels = limit_from_millions("--max-megapixels", arguments.max_megapixels)
    try:
        return Caption("", describe_quality(read_picture(path, max_pixels=max_pixels).rgb))
    except UserError:
        return Caption("", "")
