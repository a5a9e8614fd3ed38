"""Local copies of model folders and files of weights that are in buckets."""

from pathlib import Path

from xpsr_jax.buckets.cache import local_file, local_folder
from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.weights import hub_files


def local_model(path: str | Path) -> Path:
    """A local path is itself; of one in a bucket it is a copy's, without what lies beside a model in its folder.

    A path in a bucket where nothing is, is itself too.

    Raises UserError if it is incomplete, or larger than the cache (`buckets.cache`).
    """
    path = as_path(path)
    if not isinstance(path, BucketPath):
        return path
    if path.is_file():
        return local_file(path)
    if not path.is_dir():
        return path
    whole = any("/" in name and _is_of_a_model(name) for name in path.files())
    return local_folder(path, _is_of_a_model if whole else _is_of_a_component)


def _is_of_a_model(name: str) -> bool:
    first, *inside = name.split("/")
    return first in hub_files.COMPONENTS if inside else first.endswith(".json") or first == "README.md"


def _is_of_a_component(name: str) -> bool:
    return "/" not in name or name.startswith("orbax/")
