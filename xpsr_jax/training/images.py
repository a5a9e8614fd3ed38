"""The photographs that a config names."""

from collections.abc import Sequence
from pathlib import Path

from xpsr_jax.config import Images
from xpsr_jax.data.by_path import composed
from xpsr_jax.data.sample_sources import Cached, Mixture, SampleSource, Skipping, open_sample_source
from xpsr_jax.errors import UserError
from xpsr_jax.images.formats import endings
from xpsr_jax.images.listing import list_files


def open_images(images: Images) -> SampleSource:
    """Opens the photographs of a config, from one folder or from a mixture of folders.

    Raises UserError for a missing or empty folder, a missing caption, or an exclusion that matches nothing.
    """
    if not images.mixture:
        return _open(images.folder, images, images.exclude)
    weights, folders = zip(*images.mixture, strict=True)
    exclusions = [_exclusions_in(folder, images.exclude) for folder in folders]
    for pattern in images.exclude:
        if images.missing_exclusions == "error" and not any(pattern in of_one for of_one in exclusions):
            raise UserError(
                f"the exclusion {pattern!r} matches no image in any folder of the mixture. Give an image's name, or "
                f"begin with the folder's name, like {folders[0].name}/{Path(pattern).name}"
            )
    sources = [
        _open(folder, images, tuple(of_one.values())) for folder, of_one in zip(folders, exclusions, strict=True)
    ]
    return Mixture(sources, weights)


def _exclusions_in(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """The exclusions of a mixture that apply to this folder, each with its path inside the folder."""
    prefix = f"{folder.name}/"
    paths = {pattern: pattern.removeprefix(prefix) for pattern in patterns if pattern.startswith(prefix)}
    if not (names := [pattern for pattern in patterns if "/" not in pattern]):
        return paths
    there = {composed(Path(path).name) for path in list_files(folder, endings())}
    return paths | {name: name for name in names if composed(name) in there}


def _open(folder: Path, images: Images, exclude: tuple[str, ...]) -> SampleSource:
    source = open_sample_source(
        folder,
        exclude=exclude,
        missing_exclusions=images.missing_exclusions,
        captions=images.captions,
        lr_captions=images.lr_captions,
        missing=images.missing_captions,
    )
    readable = Skipping(source) if images.on_error == "skip" else source
    return Cached(readable) if images.cache else readable
