"""Writes captions of images, or edits caption files.

Captions are JSON lines {"image", "high", "low", "source", "sha256"}, appended one by one. Run the same command again to
resume: it captions new, changed and failed images.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from xpsr_jax.caption.instructions import Preset, Which, instructions
from xpsr_jax.caption.llava_choices import DEFAULT_MODEL, LlavaDtype, LlavaTemplate
from xpsr_jax.cli.groups import Groups, grouped, parse, subcommands
from xpsr_jax.cli.run import check_options, command
from xpsr_jax.errors import say
from xpsr_jax.serialisation import Range

if TYPE_CHECKING:
    from xpsr_jax.caption.captioning import Captioner, LoadedImage, Tally

Count = Annotated[int, Range(1)]
File = Annotated[Path, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class ImagesToCaption:
    """Options for all captioners.

    Attributes:
        images: Folders of images (with subfolders), images, or patterns.
        output: JSON lines to append to. With --shard, the names are captions.00000-of-00016.jsonl and so on, instead of
            captions.jsonl.
        shard: Caption only part I of N, counted from 0. The part of an image depends only on its name. Merge the files
            with xpsr caption merge.
        limit: Number of images to caption, counted from the first (default: all).
        rest: Existing captions for the parts that are not written here. Images are matched by content, otherwise by
            path.
        on_error: What to do if an image fails. skip: it is counted and named in captions.failed.txt, and the exit code
            is 1. stop: the work ends.
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES...")]
    output: File
    shard: Annotated[str, tyro.conf.arg(metavar="I/N")] = "0/1"
    limit: Count | None = None
    rest: Path | None = None
    on_error: Literal["skip", "stop"] = "skip"


@dataclass(frozen=True)
class AskedModel(ImagesToCaption):
    """Options for captioners that ask a model.

    Attributes:
        instructions: The paper's two instructions, or those of the released code. The released low-level one is for
            Q-Instruct.
        ask: Captions to ask for.
        max_new_tokens: Maximum length of an answer, in tokens.
    """

    instructions: Preset = "paper"
    ask: Which = "both"
    max_new_tokens: Count = 200


@dataclass(frozen=True)
class LlavaCommand(AskedModel):
    """LLaVA in this process, with PyTorch: pip install "xpsr-jax[torch]".

    Attributes:
        model: Folder, or name on the hub (owner/name[@revision][:folder]), of a LlavaForConditionalGeneration.
        dtype: Number format; auto: bfloat16 or float16 on a GPU, float32 on a CPU.
        device: Device to run on: cuda, cuda:1, mps, cpu; auto: a GPU if there is one.
        template: How to make a prompt from an instruction: like the released code for LLaVA 1.5, or with the model's
            chat template.
        batch_size: Images per batch.
    """

    model: str = DEFAULT_MODEL
    dtype: LlavaDtype = "auto"
    device: str = "auto"
    template: LlavaTemplate = "released"
    batch_size: Count = 8


@dataclass(frozen=True)
class ServerCommand(AskedModel):
    """A model on an OpenAI-compatible server: vLLM, SGLang, Ollama. The variable OPENAI_API_KEY sets its key.

    Attributes:
        url: Address of the API.
        model: Name of the model on the server (default: the only one there).
        requests: Number of simultaneous requests.
        timeout: Seconds to wait for a complete answer.
        retries: Retries while the server is busy, silent or broken: at once, then after 1, 2, 4 ... and at most 60 s.
        wait: Seconds to wait for a starting server before the first request.
    """

    url: str = "http://localhost:8000/v1"
    model: str | None = None
    requests: Count = 64
    timeout: Annotated[float, Range(0.1)] = 120.0
    retries: Annotated[int, Range(0)] = 10
    wait: Annotated[float, Range(0)] = 600.0


@dataclass(frozen=True)
class MeasuredCommand(ImagesToCaption):
    """Low-level captions from measurements, without a model; high-level ones from --high or --rest, otherwise empty.

    Attributes:
        high: High-level caption for all these images.
        workers: Number of threads.
    """

    high: str = ""
    workers: Count = os.cpu_count() or 1


@dataclass(frozen=True)
class MergeCommand:
    """Merges caption files, such as those of shards. If several have an image, the last file takes precedence.

    Attributes:
        files: Caption files.
        output: File to write.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE...")]
    output: File


@dataclass(frozen=True)
class ReportCommand:
    """Writes a web page with images and their captions, as one HTML file.

    Attributes:
        captions: Caption file.
        images: Folder that the image paths are relative to.
        output: HTML file to write.
        count: Number of images to show, spread evenly over the file.
    """

    captions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    images: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    output: File
    count: Count = 200


@dataclass(frozen=True)
class PairsCommand:
    """Writes captions into the text files of a folder of ready-made pairs: dataset_0/highlevel_prompt/a.txt and so on.

    Attributes:
        captions: Caption file for images such as dataset_0/LR/a.png.
        pairs: Folder of the pairs.
    """

    captions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    pairs: Annotated[Path, tyro.conf.arg(metavar="DIR")]


_FILES = ("images", "output", "shard", "limit", "rest", "on_error")
_QUESTIONS = ("instructions", "ask", "max_new_tokens")


def arguments() -> Any:
    """The type that a command line is parsed into."""
    llava: Groups = {
        "files": _FILES,
        "questions": _QUESTIONS,
        "model": ("model", "template"),
        "devices": ("device", "dtype", "batch_size"),
    }
    server: Groups = {
        "files": _FILES,
        "questions": _QUESTIONS,
        "server": ("url", "model", "requests", "timeout", "retries", "wait"),
    }
    return subcommands(
        llava=grouped(LlavaCommand, llava),
        server=grouped(ServerCommand, server),
        measured=grouped(MeasuredCommand, {"files": _FILES, "captions": ("high",), "devices": ("workers",)}),
        merge=grouped(MergeCommand, {}),
        report=grouped(ReportCommand, {}),
        pairs=grouped(PairsCommand, {}),
    )


@command(
    interrupted="interrupted; run the same command again to resume",
    lower="lower --batch-size, --workers or --requests; --dtype bfloat16 halves the size of a model",
)
def main(argv: Sequence[str] | None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after an error or if an image failed, 130 if interrupted."""
    return run_command(parse(arguments(), argv, name="caption", text=__doc__))


def run_command(
    command: LlavaCommand | ServerCommand | MeasuredCommand | MergeCommand | ReportCommand | PairsCommand,
) -> int:
    """Runs a parsed command line; returns the exit code. Raises UserError."""
    check_options(command)
    # Imported late, so that --help is fast.
    from xpsr_jax.caption.caption_page import write_caption_page
    from xpsr_jax.caption.captioning import caption_images, find_images, parse_shard, shard_file
    from xpsr_jax.caption.captions_file import CaptionsFile, merge_captions
    from xpsr_jax.caption.pair_texts import write_into_pairs

    if isinstance(command, MergeCommand):
        count, same, replaced = merge_captions(command.files, command.output)
        say(f"{count} captions in {command.output}; {same} duplicate lines, {replaced} replaced by later ones")
        return 0
    if isinstance(command, ReportCommand):
        say(write_caption_page(command.captions, command.images, command.output, count=command.count))
        return 0
    if isinstance(command, PairsCommand):
        say(f"{write_into_pairs(command.captions, command.pairs)} text files written to {command.pairs}")
        return 0
    shard = parse_shard(command.shard)
    output = shard_file(command.output, shard)
    inputs = find_images(command.images, shard=shard, limit=command.limit)
    with CaptionsFile(output) as file:  # opened first: if it is in use, that is noticed before a model is loaded
        captioner, source = make_captioner(command)
        tally = caption_images(inputs, captioner, file, source=source, rest=command.rest, on_error=command.on_error)
    print_tally(tally, output)
    return 1 if tally.failed else 0


def make_captioner(command: LlavaCommand | ServerCommand | MeasuredCommand) -> "tuple[Captioner, str]":
    """The captioner, and its name for the field "source" of the captions."""
    from xpsr_jax.caption import llava, server
    from xpsr_jax.caption.in_flight import in_flight
    from xpsr_jax.caption.measured import describe_quality
    from xpsr_jax.data.captions import Caption

    if isinstance(command, MeasuredCommand):
        high, workers = command.high.strip(), command.workers

        def measure(image: "LoadedImage") -> Caption:
            return Caption(high, describe_quality(image.pixels))

        return lambda images: in_flight(measure, images, workers, ordered=True), "measured"
    asked = instructions(command.instructions, command.ask)
    if isinstance(command, LlavaCommand):
        model = llava.load_llava(
            command.model,
            dtype=command.dtype,
            device=command.device,
            template=command.template,
            max_new_tokens=command.max_new_tokens,
        )
        name = f"{command.model}, {command.instructions} instructions"
        return llava.llava_captioner(model, asked, batch_size=command.batch_size), name
    key = server.api_key()
    server.wait_until_up(command.url, seconds=command.wait, key=key)
    served = command.model or server.served_model(command.url, key=key)
    settings = server.Server(
        command.url,
        served,
        requests=command.requests,
        timeout=command.timeout,
        retries=command.retries,
        max_tokens=command.max_new_tokens,
        key=key,
    )
    return server.server_captioner(settings, asked), f"{served}, {command.instructions} instructions"


def print_tally(tally: "Tally", output: Path) -> None:
    """Prints the results of captioning."""
    from xpsr_jax.caption.captioning import failures_file

    say(f"{output}: {tally}")
    if tally.shortened:
        say(f"{tally.shortened} captions were longer than CLIP's 77 tokens; only their first sentences were kept")
    if tally.cut:
        say(f"{tally.cut} captions begin with a sentence of more than 77 tokens; CLIP does not read its end")
    if tally.failed:
        say(f"{failures_file(output)} lists the failures and their causes; run the same command to retry them")
