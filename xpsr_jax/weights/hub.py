"""Models of the Hugging Face hub: `owner/name`, `owner/name@revision`, `owner/name:subfolder` in a folder's place.

What is needed of a model comes into the hub client's own cache: first the small files, and a network's weights when
they are opened. Whatever exists as a local path is that path. Nothing here imports JAX, and the hub's client is
imported for a name of the hub alone.
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
from xpsr_jax.files import leads_out
from xpsr_jax.weights import hub_files
from xpsr_jax.weights.hub_errors import explained, is_unreachable
from xpsr_jax.weights.local_models import local_model

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([^@:]+))?(?::([^:]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Of the first answer: who waits longer is without a network.
_SECONDS = 10.0
# From this many bytes on it is said what is being fetched.
_LARGE = 10_000_000


@dataclass(frozen=True)
class HubName:
    """The name of a model on the hub; as a text, `owner/name@revision:inside`.

    Attributes:
      repository: owner/name.
      revision: branch, tag or commit; None: the newest.
      inside: a folder in it, or a file; "": all of it.
    """

    repository: str
    revision: str | None = None
    inside: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}{':' + self.inside if self.inside else ''}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def hub_name(path: str | Path) -> HubName | None:
    """The name of the hub that a path is meant as; None: it is a local path, one that exists or no name can be."""
    return None if isinstance(as_path(path), BucketPath) or os.path.exists(path) else parsed(path)


def parsed(path: str | Path) -> HubName | None:
    """The name of the hub that a path may be, whether it exists here or not; None: it can be none."""
    found = _NAME.fullmatch(str(path))
    if found is None or found[1].endswith(hub_files.SINGLE_FILES):
        return None
    inside = (found[3] or "").strip("/")
    return None if leads_out(inside) else HubName(found[1], found[2], inside)


@dataclass(frozen=True)
class Snapshot:
    """A model of the hub at one commit.

    Attributes:
      name: with the commit as its revision.
      folder: of the whole repository in the cache.
      sizes: of every file in the repository, in bytes; of what is cached alone, if `is_cached`.
      is_cached: the hub was not to be reached, so this is what its cache has.
    """

    name: HubName
    folder: Path
    sizes: Mapping[str, int]
    is_cached: bool = False

    @property
    def root(self) -> Path:
        """The folder or file in the cache that the name means."""
        return self.folder / self.name.inside

    def below(self, folder: str = "") -> list[str]:
        """Names of the files below a folder of what is meant, relative to it."""
        return _below(self.sizes, _joined(self.name.inside, folder))

    def fetch(self, files: Collection[str], folder: str = "") -> None:
        """Brings files into the cache that are not there, and says how many and how large they are.

        Args:
          files: names relative to `folder` of what is meant.

        Raises UserError if the hub does not give them.
        """
        prefix = _joined(self.name.inside, folder)
        absent = [prefix + name for name in files if not (self.folder / (prefix + name)).exists()]
        if absent:
            _download(self.name, {name: self.sizes[name] for name in absent})


def local(path: str | Path) -> Path:
    """The path itself; or of a name on the hub, its folder or file in the cache; or a copy of what is in a bucket.

    A model's small files are there then. The weights of its networks come when `complete` is told of their folder,
    as it is whenever they are opened.

    Raises UserError if the hub does not have it, does not give it, or is not to be reached.
    """
    name = hub_name(path)
    if name is None:
        return local_model(path)
    snapshot = open_snapshot(name)
    _OPENED[snapshot.root] = snapshot
    return snapshot.root


def commit_of(name: HubName) -> str:
    """The commit that a name means today, or in the cache where the hub is not to be reached. Raises as `local`."""
    commit = name.revision if name.is_pinned else open_snapshot(name).name.revision
    assert commit is not None
    return commit


def pinned_name(name: HubName) -> HubName:
    """The name with its commit (`commit_of`) as the revision."""
    return dataclasses.replace(name, revision=commit_of(name))


def pinned(path: str | Path) -> Path:
    """The path itself; or a name on the hub, as `pinned_name`."""
    name = hub_name(path)
    return as_path(path) if name is None else Path(str(pinned_name(name)))


def complete(folder: Path, *, variant: str | None = None) -> None:
    """Fetches the weights of one component, if its folder is one of a model of the hub; what is there stays.

    Args:
      folder: of the component, as `local` gave it or below that.
      variant: as in `hub_files.weights`.

    Raises UserError if the hub does not give them.
    """
    found = _opened(folder)
    if found is None:
        return
    snapshot, inside = found
    chosen = hub_files.weights(snapshot.below(inside), variant=variant)
    if not chosen and snapshot.is_cached:
        raise UserError(f"{shown(folder)}: its weights are not in the cache, and the hub is not to be reached")
    snapshot.fetch(chosen, inside)


def fetch(name: HubName, *, variant: str | None = None) -> dict[str, Path]:
    """All files that a model needs, or the one that is meant: each file's name there, and where it is in the cache.

    Args:
      variant: as in `hub_files.weights`, of every component.

    Raises UserError if the hub does not give them.
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
    """Names of the files that the hub has of a component's folder; [] of a folder that is not of the hub."""
    found = _opened(folder)
    return found[0].below(found[1]) if found else []


def repository_folder(folder: Path) -> Path:
    """Of a folder of a model of the hub, that of the whole repository in the cache; any other folder is itself."""
    found = _opened(folder)
    return found[0].folder if found else folder


def shown(path: Path) -> str:
    """A path for people: of a component of a model of the hub its name there, of anything else the path itself."""
    found = _opened(path)
    if found is None:
        return str(path)
    snapshot, inside = found
    return str(dataclasses.replace(snapshot.name, inside=_joined(snapshot.name.inside, inside).rstrip("/")))


@functools.cache
def open_snapshot(name: HubName) -> Snapshot:
    """Asks the hub what a name means, once a process, and fetches the small files, or the one file that is meant.

    Where the hub is not to be reached, it is what the cache has. Raises UserError if that is nothing.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True, timeout=_SECONDS)
    # Which errors of a network there are depends on the release of the client.
    except Exception as error:
        return _from_cache(name, error)
    assert info.sha is not None
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    # By the revision's own name: the client notes which commit it is, for when there is no network.
    folder = _download(name, {each: sizes[each] for each in _first_files(name, sizes)})
    if folder.name != info.sha:  # It became another commit just now.
        return open_snapshot(dataclasses.replace(name, revision=folder.name))
    return Snapshot(dataclasses.replace(name, revision=info.sha), folder, sizes)


# By the folder that `local` gave.
_OPENED: dict[Path, Snapshot] = {}


def _opened(folder: Path) -> tuple[Snapshot, str] | None:
    """The model of the hub that a folder is, or is a component of, and the component's subfolder ("": itself)."""
    for root, inside in ((folder, ""), (folder.parent, folder.name)):
        if root in _OPENED:
            return _OPENED[root], inside
    return None


def _first_files(name: HubName, sizes: Mapping[str, int]) -> list[str]:
    """The one file that is meant, or the small ones of a model folder. Raises UserError if there are none."""
    if name.inside in sizes:
        return [name.inside]
    prefix = _joined(name.inside)
    names = _below(sizes, prefix)
    if found := hub_files.descriptions(names):
        card = [each for each in ("README.md",) if prefix and each in sizes]  # of the repository: it says the licence
        return [*card, *(prefix + each for each in found)]
    single = [each for each in names if each.endswith(hub_files.SINGLE_FILES)]
    if single:
        raise UserError(f"{name} is no model folder; name one of its files, {name.repository}:{prefix}{single[0]}")
    inside = listed(sorted({each.partition("/")[0] for each in sizes})) or "nothing"
    raise UserError(f"{name.repository} on the hub has no {name.inside or 'model'}; it has {inside}")


def _from_cache(name: HubName, error: Exception) -> Snapshot:
    """What the cache has of it, after an error of asking the hub. Raises UserError if nothing, or if it was refused."""
    from huggingface_hub import snapshot_download

    if not is_unreachable(error):
        raise explained(error, str(name)) from error
    try:
        # No pattern: the folder, whatever is in it.
        found = snapshot_download(name.repository, revision=name.revision, local_files_only=True, allow_patterns=[])
    except Exception:
        raise explained(error, str(name)) from error
    folder = Path(found)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    _first_files(name, sizes)
    say(f"{name.repository}: the hub is not asked or not reached; the cache has commit {folder.name}", to_stderr=True)
    return Snapshot(dataclasses.replace(name, revision=folder.name), folder, sizes, is_cached=True)


def _download(name: HubName, sizes: Mapping[str, int]) -> Path:
    """Brings files of a revision into the cache; the folder there. Raises UserError if the hub does not give them."""
    from huggingface_hub import snapshot_download

    if (size := sum(sizes.values())) >= _LARGE:
        shown = min(sizes) if len(sizes) == 1 else f"{len(sizes)} files"
        say(f"{name.repository}: {shown}, {size / 1e6:,.0f} MB", to_stderr=True)
    # Patterns, to the client.
    patterns = [glob.escape(each) for each in sizes]
    try:
        return Path(snapshot_download(name.repository, revision=name.revision, allow_patterns=patterns))
    except Exception as error:
        raise explained(error, str(name)) from error


def _joined(*parts: str) -> str:
    return "".join(f"{part}/" for part in parts if part)


def _below(names: Iterable[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
