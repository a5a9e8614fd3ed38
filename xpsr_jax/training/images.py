"""The photographs that a config names."""

from xpsr_jax.config import Images
from xpsr_jax.data.sources import ImageFolder


def open_images(images: Images) -> ImageFolder:
    """Raises UserError for a missing or empty folder, a missing caption, an exclusion that matches nothing."""
    captions = images.captions or images.folder / "captions.jsonl"
    without = images.captions is None and images.missing_captions == "empty" and not captions.is_file()
    return ImageFolder(
        images.folder,
        exclude=images.exclude,
        missing_exclusions=images.missing_exclusions,
        captions=None if without else captions,
        lr_captions=images.lr_captions,
        missing=images.missing_captions,
        cache=images.cache,
    )
