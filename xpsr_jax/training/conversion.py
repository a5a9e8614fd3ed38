"""Conversion of any supported source of weights, including a run of `xpsr train`, into a model folder."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpsr_jax.buckets.paths import as_path
from xpsr_jax.errors import UserError
from xpsr_jax.training.checkpoint_source import open_checkpoint
from xpsr_jax.weights import convert as conversion
from xpsr_jax.weights.lora import with_loras
from xpsr_jax.weights.other_base import with_other_base
from xpsr_jax.weights.sources import Source, check_each_is_used, is_training_checkpoint, merge, open_source
from xpsr_jax.weights.tensors import together


def convert(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    variant: str | None = None,
    ema: bool = False,
    average: bool = True,
    base_unet: str | Path | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    **options: Any,
) -> conversion.Converted:
    """Merges folders and files by component into a new model folder. A later path overrides an earlier one.

    Args:
      paths: folders, files and models of the hub (docs/reference/formats.md).
      output: the folder to write; it appears when it is complete.
      variant: which weight files of a folder to read, such as "fp16". A component without that variant uses its
        plain files.
      ema: read the averaged UNet of a single file that has both the averaged and the trained one.
      average: read the moving average of a checkpoint's trained parameters, if the run has one.
      base_unet: another Stable Diffusion 1.5; all frozen tensors are read from it.
      loras: files and strengths, merged into the UNet and the text encoder.
      options: of `weights.convert.convert`: the format and type to write, and whether to verify or overwrite.

    Raises UserError: a path has no weights, the weights do not fit the networks, or the output cannot be written.
    """
    sources = open_weights(paths, variant=variant, ema=ema, average=average, base_unet=base_unet, loras=loras)
    return conversion.convert(sources, as_path(output), **options)


def open_weights(
    paths: Sequence[str | Path],
    *,
    variant: str | None = None,
    ema: bool = False,
    average: bool = True,
    base_unet: str | Path | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
) -> list[Source]:
    """Opens folders in diffusers' layout, single files of Stable Diffusion and checkpoints of `xpsr train`.

    Args:
      variant: which weight files of a folder to read, such as "fp16". A component without that variant uses its
        plain files.
      ema: read the averaged UNet of a single file that has both the averaged and the trained one.
      average: read the moving average of a checkpoint's trained parameters, if the run has one.
      base_unet: another Stable Diffusion 1.5; all frozen tensors are read from it (`other_base.with_other_base`).
      loras: files and strengths, merged into the UNet and the text encoder (`lora.with_loras`).

    Returns: one source for each path; with `base_unet` or `loras` a single merged source.

    Raises UserError: no path is given, or a path cannot be read. The message names every bad path.
    """
    if not paths:
        raise UserError("name at least one folder or file to convert")
    bases = [as_path(path) for path in paths]

    def opened(i: int) -> Source:
        if is_training_checkpoint(bases[i]):
            return open_checkpoint(bases[i], bases=bases[:i], average=average)
        return open_source(bases[i], variant=variant, ema=ema)

    sources = list(together(*(functools.partial(opened, i) for i in range(len(bases)))))
    # The sources before a training checkpoint may be its base model.
    first = max((i for i, source in enumerate(sources) if source.reads_base), default=0)
    check_each_is_used(bases[first:], [source.origins for source in sources[first:]])
    if base_unet is None and not loras:
        return sources
    merged = merge(sources)
    if base_unet is not None:
        merged = with_other_base(merged, base_unet, variant=variant, ema=ema)
    return [with_loras(merged, loras) if loras else merged]
