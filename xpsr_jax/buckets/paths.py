"""`BucketPath`, a path in a bucket. Local paths remain plain `pathlib.Path` objects."""

import dataclasses
import fnmatch
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PosixPath, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from xpsr_jax.buckets.connection import PACKAGES, check_installed, configure, explained, filesystem, tried, writing
from xpsr_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath
    from fsspec import AbstractFileSystem

T = TypeVar("T")

_SCHEMES = {f"{scheme}:": scheme for scheme in PACKAGES}
# pathlib turns two slashes into one. A single letter is excluded, because it may be a drive.
_OTHER_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")


class BucketPath(PosixPath):
    """A path gs://BUCKET/NAME or s3://BUCKET/NAME, with those methods of pathlib that buckets support.

    A folder exists as long as it contains a file; `mkdir` does nothing. Files appear as a whole when they are closed.
    Functions for local paths (`open`, `os`, `shutil`, C++) get UserError, so they never write into a folder ./gs:/.

    All methods raise UserError if the bucket cannot be reached or refuses.
    """

    @property
    def scheme(self) -> str:
        """The scheme, gs or s3."""
        return _SCHEMES[self.parts[0]]

    @property
    def key(self) -> str:
        """BUCKET/NAME, as fsspec expects it."""
        return "/".join(self.parts[1:])

    @property
    def fs(self) -> "AbstractFileSystem":
        """fsspec's file system."""
        return filesystem(self.scheme)

    @property
    def epath(self) -> "epath.Path":
        """The path for Orbax."""
        configure()
        from etils import epath

        return epath.Path(str(self))

    def __str__(self) -> str:
        return f"{self.parts[0]}//{self.key}"

    def __fspath__(self) -> str:
        raise UserError(f"{self}: this is not supported in a bucket; name a local path")

    def exists(self, **_: Any) -> bool:
        """Whether the path is a file or a folder."""
        with self._read():
            return bool(tried(lambda: self.fs.exists(self.key)))

    def is_dir(self, **_: Any) -> bool:
        """Whether the path is a folder, with at least one file in it."""
        with self._read():
            return bool(tried(lambda: self.fs.isdir(self.key)))

    def is_file(self, **_: Any) -> bool:
        """Whether the path is a file."""
        with self._read():
            return bool(tried(lambda: self.fs.isfile(self.key)))

    def is_symlink(self) -> bool:
        """Always False: buckets have no links."""
        return False

    def absolute(self) -> "BucketPath":
        """The path itself, unchanged."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """The path itself, unchanged."""
        return self

    def expanduser(self) -> "BucketPath":
        """The path itself, unchanged."""
        return self

    def info(self) -> dict[str, Any]:
        """The bucket's metadata of a file. Raises FileNotFoundError."""
        with self._read():
            found: dict[str, Any] = tried(lambda: self.fs.info(self.key))
            return found

    def stat(self, **_: Any) -> os.stat_result:
        """Size and modification time. Raises FileNotFoundError."""
        found = self.info()
        with self._read():
            changed = self.fs.modified(self.key).timestamp() if found["type"] == "file" else 0.0
        kind = stat.S_IFREG if found["type"] == "file" else stat.S_IFDIR
        return os.stat_result((kind | 0o644, 0, 0, 1, 0, 0, found.get("size") or 0, changed, changed, changed))

    def lstat(self) -> os.stat_result:
        """Same as `stat`: buckets have no links."""
        return self.stat()

    def iterdir(self) -> Iterator["BucketPath"]:  # type: ignore[override]
        """The files and folders in the folder. Raises FileNotFoundError if there are none."""
        with self._read():
            found = tried(lambda: self.fs.ls(self.key, detail=False))
        names = {PurePosixPath(each).name for each in found if each.strip("/") != self.key}
        return (self / name for name in sorted(names))

    def files(self) -> dict[str, dict[str, Any]]:
        """The bucket's metadata of every file below the folder, by relative path; empty if there are none."""
        with self._read():
            try:
                found = tried(lambda: self.fs.find(self.key, detail=True))
            except FileNotFoundError:
                return {}
        start = f"{self.key}/"
        return {
            key[len(start) :]: info
            for key, info in sorted(found.items())
            # Objects with a name that ends with a slash represent folders.
            if key.startswith(start) and not key.endswith("/") and info.get("type") == "file"
        }

    def glob(self, pattern: str, **_: Any) -> Iterator["BucketPath"]:  # type: ignore[override]
        """Paths below the folder that match a pattern of any depth, without `**`. Use `files` instead of `**`."""
        first, rest = (*pattern.split("/", 1), "")[:2]
        try:
            found = [path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, first)]
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in found:
            if rest:
                yield from path.glob(rest)
            else:
                yield path

    def rglob(self, pattern: str, **_: Any) -> Iterator["BucketPath"]:  # type: ignore[override]
        """Files at any depth whose names match the pattern."""
        return (self / name for name in self.files() if fnmatch.fnmatchcase(PurePosixPath(name).name, pattern))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a bucket has no folders."""

    def rmdir(self) -> None:
        """Does nothing: a bucket has no folders."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file. Raises FileNotFoundError unless `missing_ok`."""
        try:
            with explained(self, "removed"):
                self.fs.rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Removes all files below the folder, if there are any."""
        names = list(self.files())
        with explained(self, "removed"):
            if names:
                self.fs.rm([f"{self.key}/{name}" for name in names])

    def rename(self, target: str | os.PathLike) -> "BucketPath":
        """Copies to another path in the bucket, then removes the original. Unlike a local rename, it is not atomic."""
        assert isinstance(target, BucketPath) and target.scheme == self.scheme
        names = list(self.files()) or [""]
        for name in names:
            with self._written():
                self.fs.cp_file(f"{self.key}/{name}".rstrip("/"), f"{target.key}/{name}".rstrip("/"))
        if names == [""]:
            self.unlink()
        else:
            self.remove_tree()
        return target

    def open(  # type: ignore[override]
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.BytesIO | io.TextIOWrapper:
        """Opens a small file for reading, and reads it into memory. Use `files.new_file` for writing."""
        if mode not in ("r", "rt", "rb"):
            raise UserError(f"{self}: a file in a bucket cannot be opened for writing; name a local path")
        data = io.BytesIO(self.read_bytes())
        return data if "b" in mode else io.TextIOWrapper(data, encoding or "utf-8", errors, newline)

    def write_bytes(self, data: Any) -> int:
        """Writes a small file atomically."""
        with self._written():
            tried(lambda: self.fs.pipe_file(self.key, bytes(data)))
        return len(data)

    def create(self, data: bytes) -> bool:
        """Writes a small file if the name is free, and returns whether it did. Of several at once, one succeeds."""
        with self._written():
            try:
                self.fs.pipe_file(self.key, data, mode="create")
            except FileExistsError:
                return False
        return True

    def read_bytes(self) -> bytes:
        """The content of a small file. Raises FileNotFoundError."""
        with self._read():
            data: bytes = tried(lambda: self.fs.cat_file(self.key))
            return data

    def upload(self, file: Path) -> None:
        """Uploads a local file to this path, atomically."""
        with self._written():
            tried(lambda: self.fs.put_file(os.fspath(file), self.key))

    def download(self, file: Path) -> None:
        """Downloads into a new local file. Raises FileNotFoundError."""
        with self._read():
            tried(lambda: self.fs.get_file(self.key, os.fspath(file)))

    def _read(self) -> Any:
        return explained(self, "read")

    def _written(self) -> Any:
        return writing(self)


def as_path(path: str | os.PathLike) -> Path:
    """The path that a user has named: a `BucketPath` for gs:// and s3://, otherwise a local path.

    It also recognizes bucket paths that pathlib has changed to one slash. Raises UserError if the bucket's name is
    missing, the extra is not installed, or the scheme is another one.
    """
    made = path if isinstance(path, Path) else Path(path)
    if isinstance(made, BucketPath) or not made.parts or not made.parts[0].endswith(":"):
        return made
    first = made.parts[0]
    if first in _SCHEMES:
        if len(made.parts) < 2:
            raise UserError(f"{first}// names no bucket; write {first}//BUCKET/NAME")
        check_installed(_SCHEMES[first])
        return BucketPath(*made.parts)
    if _OTHER_SCHEME.fullmatch(first) and not os.path.exists(first):
        raise UserError(f"{first}// is not supported; use a local path, gs:// or s3://")
    return made


def with_paths(value: T) -> T:
    """Applies `as_path` to every path in settings, at any depth of dataclasses and tuples. Raises its errors."""
    return _with_paths(value)  # type: ignore[no-any-return]


def _with_paths(value: Any) -> Any:
    if isinstance(value, Path):
        return as_path(value)
    if type(value) is tuple:
        return tuple(map(_with_paths, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        before = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        after = {name: _with_paths(each) for name, each in before.items()}
        # Compared by identity: equal paths may be of different classes.
        changed = {name: each for name, each in after.items() if not _same(each, before[name])}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def _same(one: Any, other: Any) -> bool:
    if type(one) is tuple:
        return all(map(_same, one, other))
    return one is other


def refuse(path: Path | None, what: str) -> None:
    """Raises UserError if the path is in a bucket. For options that need a local path, before any work.

    Args:
      what: the option, such as "--compare".
    """
    if isinstance(path, BucketPath):
        raise UserError(f"{what} {path} cannot be in a bucket; name a local path")
