"""The photographs that a config names."""

from pathlib import Path

from xpsr_jax.config import Images
from xpsr_jax.data.sample_sources import Cached, Mixture, SampleSource, Skipping, open_sample_source
from xpsr_jax.errors import UserError


def open_images(images: Images) -> SampleSource:
    """Raises UserError for a missing or empty folder, a missing caption, an exclusion that matches nothing."""
    if not images.mixture:
        return _open(images.folder, images, images.exclude)
    weights, folders = zip(*images.mixture, strict=True)
    for pattern in images.exclude:
        if not any(pattern.startswith(f"{folder.name}/") for folder in folders):
            raise UserError(
                f"{pattern!r}, which is to be excluded, is in no folder of the mixture. Begin it with the folder's "
                f"name, like {folders[0].name}/{Path(pattern).name}"
            )
    sources = [
        _open(folder, images, tuple(p.removeprefix(name) for p in images.exclude if p.startswith(name)))
        for folder, name in ((folder, f"{folder.name}/") for folder in folders)
    ]
    return Mixture(sources, weights)


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
