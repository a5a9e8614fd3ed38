"""Local copies of model folders and weight files in buckets."""

from pathlib import Path

from xpsr_jax.buckets.cache import local_file, local_folder
from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.weights import hub_files


def local_model(path: str | Path) -> Path:
    """The path of a local copy of what is in a bucket. A local path is returned unchanged.

    Only the model's own files are copied, not others in its folder. A path in a bucket that does not exist is
    returned unchanged too.

    Raises UserError if the copy is incomplete, or larger than the cache (`buckets.cache`).
    """
    path = as_path(path)
    if not isinstance(path, BucketPath):
        return path
    if path.is_file():
        return local_file(path)
    if not path.is_dir():
        return path
    whole = any("/" in name and _is_model_file(name) for name in path.files())
    return local_folder(path, _is_model_file if whole else _is_component_file)


def _is_model_file(name: str) -> bool:
    first, *inside = name.split("/")
    return first in hub_files.COMPONENTS if inside else first.endswith(".json") or first == "README.md"


def _is_component_file(name: str) -> bool:
    return "/" not in name or name.startswith("orbax/")
