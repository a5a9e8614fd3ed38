"""Models on the Hugging Face hub: `owner/name`, `owner/name@revision` or `owner/name:subfolder` instead of a folder.

The needed files are downloaded into the cache of the hub's client: the small files first, a network's weights when
they are opened. A local path that exists takes precedence over a name on the hub. Nothing here imports JAX. The hub's
client is imported only when a name on the hub is used.
"""

import dataclasses
import functools
import glob
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xpsr_jax.buckets.paths import BucketPath, as_path
from xpsr_jax.errors import UserError, listed, say
from xpsr_jax.files import leads_out, put_back
from xpsr_jax.weights import hub_files
from xpsr_jax.weights.hub_errors import explained, is_unreachable
from xpsr_jax.weights.local_models import local_model

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([^@:]+))?(?::([^:]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Time to wait for the first answer. After that, there is probably no network.
_SECONDS = 10.0
# A download of at least this many bytes is announced.
_LARGE = 10_000_000


@dataclass(frozen=True)
class HubName:
    """The name of a model on the hub. `str` gives `owner/name@revision:inside`.

    Attributes:
      repository: owner/name.
      revision: branch, tag or commit; None: the newest commit of the default branch.
      inside: a folder or a file in the repository; "": the whole repository.
    """

    repository: str
    revision: str | None = None
    inside: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}{':' + self.inside if self.inside else ''}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit. A commit never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def hub_name(path: str | Path) -> HubName | None:
    """The name on the hub that a path means. None if it exists locally, is in a bucket, or is not a valid name."""
    local_path = as_path(path)
    put_back(local_path)
    return None if isinstance(local_path, BucketPath) or os.path.exists(path) else parsed(path)


def parsed(path: str | Path) -> HubName | None:
    """A path as a name on the hub, even if it also exists locally. None if it is not a valid name."""
    found = _NAME.fullmatch(str(path))
    if found is None or found[1].endswith(hub_files.SINGLE_FILES):
        return None
    inside = (found[3] or "").strip("/")
    return None if leads_out(inside) else HubName(found[1], found[2], inside)


@dataclass(frozen=True)
class Snapshot:
    """A model on the hub at one commit.

    Attributes:
      name: the name, with the commit as its revision.
      folder: the cache folder of the whole repository.
      sizes: size in bytes of every file in the repository; only of the cached files if `is_cached`.
      is_cached: whether the hub could not be reached, so that only cached files are known.
    """

    name: HubName
    folder: Path
    sizes: Mapping[str, int]
    is_cached: bool = False

    @property
    def root(self) -> Path:
        """The folder or file in the cache that the name refers to."""
        return self.folder / self.name.inside

    def below(self, folder: str = "") -> list[str]:
        """Names of the files below a folder (relative to `root`), relative to that folder."""
        return _below(self.sizes, _joined(self.name.inside, folder))

    def fetch(self, files: Collection[str], folder: str = "") -> None:
        """Downloads the files that the cache lacks, and announces their number and size.

        Args:
          files: names relative to `folder`.
          folder: a folder relative to `root`.

        Raises UserError if the hub refuses or cannot be reached.
        """
        prefix = _joined(self.name.inside, folder)
        absent = [prefix + name for name in files if not (self.folder / (prefix + name)).exists()]
        if absent:
            _download(self.name, {name: self.sizes[name] for name in absent})


def local(path: str | Path) -> Path:
    """The local path of a model: a local path is returned unchanged, anything else as its path in the cache.

    For a name on the hub, only the small files are downloaded here. The weights of a network follow when `complete` is
    called with its folder, which happens whenever they are opened. A path in a bucket is copied.

    Raises UserError if the hub does not have the model, refuses it, or cannot be reached.
    """
    name = hub_name(path)
    if name is None:
        return local_model(path)
    snapshot = open_snapshot(name)
    _OPENED[snapshot.root] = snapshot
    return snapshot.root


def commit_of(name: HubName) -> str:
    """The current commit of a name, or the cached one if the hub cannot be reached. Raises the errors of `local`."""
    commit = name.revision if name.is_pinned else open_snapshot(name).name.revision
    assert commit is not None
    return commit


def pinned_name(name: HubName) -> HubName:
    """The name with its commit (`commit_of`) as the revision."""
    return dataclasses.replace(name, revision=commit_of(name))


def pinned(path: str | Path) -> Path:
    """For a name on the hub, `pinned_name` as a path. Any other path is returned unchanged."""
    name = hub_name(path)
    return as_path(path) if name is None else Path(str(pinned_name(name)))


def complete(folder: Path, *, variant: str | None = None) -> None:
    """Downloads the weights of one component that the cache lacks. A folder that is not from the hub is ignored.

    Args:
      folder: the component's folder, either returned by `local` or directly below that.
      variant: as in `hub_files.weights`.

    Raises UserError if the hub refuses or cannot be reached.
    """
    found = _opened(folder)
    if found is None:
        return
    snapshot, inside = found
    chosen = hub_files.weights(snapshot.below(inside), variant=variant)
    if not chosen and snapshot.is_cached:
        raise UserError(f"{shown(folder)}: its weights are not in the cache, and the hub cannot be reached")
    snapshot.fetch(chosen, inside)


def fetch(name: HubName, *, variant: str | None = None) -> dict[str, Path]:
    """Downloads all files that a model needs, or the one named file.

    Args:
      variant: as in `hub_files.weights`, for every component.

    Returns the path in the cache of each file, by its name on the hub.

    Raises UserError if the hub refuses or cannot be reached.
    """
    snapshot = open_snapshot(name)
    if snapshot.root.is_file():
        return {Path(name.inside).name: snapshot.root}
    names = snapshot.below()
    wanted = hub_files.descriptions(names)
    for part in ("", *hub_files.COMPONENTS):
        wanted += [_joined(part) + each for each in hub_files.weights(snapshot.below(part), variant=variant)]
    snapshot.fetch(wanted)
    return {each: snapshot.root / each for each in sorted(wanted)}


def names_in(folder: Path) -> list[str]:
    """Names of the files that the hub has for a component's folder; [] if the folder is not from the hub."""
    found = _opened(folder)
    return found[0].below(found[1]) if found else []


def repository_folder(folder: Path) -> Path:
    """The cache folder of the whole repository that a folder belongs to. Other folders are returned unchanged."""
    found = _opened(folder)
    return found[0].folder if found else folder


def shown(path: Path) -> str:
    """A path for messages: the name on the hub for a model or component from the hub, otherwise the path itself."""
    found = _opened(path)
    if found is None:
        return str(path)
    snapshot, inside = found
    return str(dataclasses.replace(snapshot.name, inside=_joined(snapshot.name.inside, inside).rstrip("/")))


@functools.cache
def open_snapshot(name: HubName) -> Snapshot:
    """Asks the hub for the commit of a name, once per process, and downloads the small files or the one named file.

    If the hub cannot be reached, the cache is used. Raises UserError if the cache has nothing either.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True, timeout=_SECONDS)
    # The types of network errors depend on the release of the client.
    except Exception as error:
        return _from_cache(name, error)
    assert info.sha is not None
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    # By the revision's own name: the client then stores its commit, for use without a network.
    folder = _download(name, {each: sizes[each] for each in _first_files(name, sizes)})
    if folder.name != info.sha:  # The revision has changed between the two requests.
        return open_snapshot(dataclasses.replace(name, revision=folder.name))
    return Snapshot(dataclasses.replace(name, revision=info.sha), folder, sizes)


# The snapshots that `local` has opened, by the path that it returned.
_OPENED: dict[Path, Snapshot] = {}


def _opened(folder: Path) -> tuple[Snapshot, str] | None:
    """The snapshot that a folder belongs to, and the component's subfolder in it ("" for the snapshot's root)."""
    for root, inside in ((folder, ""), (folder.parent, folder.name)):
        if root in _OPENED:
            return _OPENED[root], inside
    return None


def _first_files(name: HubName, sizes: Mapping[str, int]) -> list[str]:
    """The one named file, or the small files of a model folder. Raises UserError if there are none."""
    if name.inside in sizes:
        return [name.inside]
    prefix = _joined(name.inside)
    names = _below(sizes, prefix)
    if found := hub_files.descriptions(names):
        card = [each for each in ("README.md",) if prefix and each in sizes]  # the repository's card has the licence
        return [*card, *(prefix + each for each in found)]
    single = [each for each in names if each.endswith(hub_files.SINGLE_FILES)]
    if single:
        raise UserError(f"{name} is not a model folder; name one of its files, {name.repository}:{prefix}{single[0]}")
    inside = listed(sorted({each.partition("/")[0] for each in sizes})) or "nothing"
    raise UserError(f"{name.repository} on the hub has no {name.inside or 'model'}; it has {inside}")


def _from_cache(name: HubName, error: Exception) -> Snapshot:
    """The cached snapshot, after a request to the hub failed. Raises UserError if there is none or the hub refused."""
    from huggingface_hub import snapshot_download

    if not is_unreachable(error):
        raise explained(error, str(name)) from error
    try:
        # Without patterns, the client returns the folder whatever it contains.
        found = snapshot_download(name.repository, revision=name.revision, local_files_only=True, allow_patterns=[])
    except Exception:
        raise explained(error, str(name)) from error
    folder = Path(found)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    _first_files(name, sizes)
    say(f"{name.repository}: offline, or the hub cannot be reached; using cached commit {folder.name}", to_stderr=True)
    return Snapshot(dataclasses.replace(name, revision=folder.name), folder, sizes, is_cached=True)


def _download(name: HubName, sizes: Mapping[str, int]) -> Path:
    """Downloads files of a revision into the cache; returns the folder there. Raises UserError if that fails."""
    from huggingface_hub import snapshot_download

    if (size := sum(sizes.values())) >= _LARGE:
        shown = min(sizes) if len(sizes) == 1 else f"{len(sizes)} files"
        say(f"{name.repository}: downloading {shown}, {size / 1e6:,.0f} MB", to_stderr=True)
    # The client takes patterns, not names.
    patterns = [glob.escape(each) for each in sizes]
    try:
        return Path(snapshot_download(name.repository, revision=name.revision, allow_patterns=patterns))
    except Exception as error:
        raise explained(error, str(name)) from error


def _joined(*parts: str) -> str:
    return "".join(f"{part}/" for part in parts if part)


def _below(names: Iterable[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
