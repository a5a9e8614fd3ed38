"""`BucketPath`, a path whose files are in a bucket. Local paths stay `pathlib.Path`: they are not handled here."""

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
# pathlib makes one slash of two. One letter may be a drive of somebody's.
_OTHER_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")


class BucketPath(PosixPath):
    """A path gs://BUCKET/NAME or s3://BUCKET/NAME, with pathlib's methods as far as a bucket has what they ask for.

    A folder is there as long as something is in it; `mkdir` does nothing. Files appear whole, when they are closed.
    What takes the path for a local one (`open`, `os`, `shutil`, C++) gets UserError: no path leads to ./gs:/.

    All methods raise UserError where the bucket cannot be reached or refuses.
    """

    @property
    def scheme(self) -> str:
        """gs or s3."""
        return _SCHEMES[self.parts[0]]

    @property
    def key(self) -> str:
        """BUCKET/NAME, as fsspec has it."""
        return "/".join(self.parts[1:])

    @property
    def fs(self) -> "AbstractFileSystem":
        """fsspec's file system."""
        return filesystem(self.scheme)

    @property
    def epath(self) -> "epath.Path":
        """The same for Orbax."""
        configure()
        from etils import epath

        return epath.Path(str(self))

    def __str__(self) -> str:
        return f"{self.parts[0]}//{self.key}"

    def __fspath__(self) -> str:
        raise UserError(f"{self}: this is not done in a bucket; name a local path")

    def exists(self, **_: Any) -> bool:
        """Whether there is such a file, or something below it."""
        with self._read():
            return bool(tried(lambda: self.fs.exists(self.key)))

    def is_dir(self, **_: Any) -> bool:
        """Whether something is below it."""
        with self._read():
            return bool(tried(lambda: self.fs.isdir(self.key)))

    def is_file(self, **_: Any) -> bool:
        """Whether there is such a file."""
        with self._read():
            return bool(tried(lambda: self.fs.isfile(self.key)))

    def is_symlink(self) -> bool:
        """Buckets have no links."""
        return False

    def absolute(self) -> "BucketPath":
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Itself."""
        return self

    def expanduser(self) -> "BucketPath":
        """Itself."""
        return self

    def info(self) -> dict[str, Any]:
        """What the bucket says of a file. Raises FileNotFoundError."""
        with self._read():
            found: dict[str, Any] = tried(lambda: self.fs.info(self.key))
            return found

    def stat(self, **_: Any) -> os.stat_result:
        """Size, and when it was written. Raises FileNotFoundError."""
        found = self.info()
        with self._read():
            changed = self.fs.modified(self.key).timestamp() if found["type"] == "file" else 0.0
        kind = stat.S_IFREG if found["type"] == "file" else stat.S_IFDIR
        return os.stat_result((kind | 0o644, 0, 0, 1, 0, 0, found.get("size") or 0, changed, changed, changed))

    def lstat(self) -> os.stat_result:
        """The same: buckets have no links."""
        return self.stat()

    def iterdir(self) -> Iterator["BucketPath"]:  # type: ignore[override]
        """What is in the folder. Raises FileNotFoundError if nothing is."""
        with self._read():
            found = tried(lambda: self.fs.ls(self.key, detail=False))
        names = {PurePosixPath(each).name for each in found if each.strip("/") != self.key}
        return (self / name for name in sorted(names))

    def files(self) -> dict[str, dict[str, Any]]:
        """What the bucket says of every file below, by relative path; none if there is none."""
        with self._read():
            try:
                found = tried(lambda: self.fs.find(self.key, detail=True))
            except FileNotFoundError:
                return {}
        start = f"{self.key}/"
        return {
            key[len(start) :]: info
            for key, info in sorted(found.items())
            # Objects whose name ends with a slash stand for folders.
            if key.startswith(start) and not key.endswith("/") and info.get("type") == "file"
        }

    def glob(self, pattern: str, **_: Any) -> Iterator["BucketPath"]:  # type: ignore[override]
        """What is below by a pattern of any depth but `**`, for which there is `files`."""
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
        """Files at any depth, by their names."""
        return (self / name for name in self.files() if fnmatch.fnmatchcase(PurePosixPath(name).name, pattern))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a bucket has no folders."""

    def rmdir(self) -> None:
        """Nothing either."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file."""
        try:
            with explained(self, "removed"):
                self.fs.rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Removes all that is below, if anything is."""
        names = list(self.files())
        with explained(self, "removed"):
            if names:
                self.fs.rm([f"{self.key}/{name}" for name in names])

    def rename(self, target: str | os.PathLike) -> "BucketPath":
        """Copies to another place in the bucket, then removes: not at one stroke, unlike a local rename."""
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
        """For reading a small file, which is in memory then. `files.new_file` writes one."""
        if mode not in ("r", "rt", "rb"):
            raise UserError(f"{self}: a file in a bucket cannot be opened for writing; name a local path")
        data = io.BytesIO(self.read_bytes())
        return data if "b" in mode else io.TextIOWrapper(data, encoding or "utf-8", errors, newline)

    def write_bytes(self, data: Any) -> int:
        """Writes a small file at one stroke."""
        with self._written():
            tried(lambda: self.fs.pipe_file(self.key, bytes(data)))
        return len(data)

    def create(self, data: bytes) -> bool:
        """Writes a small file if there is none of the name; of several who try at once, one succeeds."""
        with self._written():
            try:
                self.fs.pipe_file(self.key, data, mode="create")
            except FileExistsError:
                return False
        return True

    def read_bytes(self) -> bytes:
        """All of a small file. Raises FileNotFoundError."""
        with self._read():
            data: bytes = tried(lambda: self.fs.cat_file(self.key))
            return data

    def upload(self, file: Path) -> None:
        """Makes a local file this one, whole or not at all."""
        with self._written():
            tried(lambda: self.fs.put_file(os.fspath(file), self.key))

    def download(self, file: Path) -> None:
        """Copies into a new local file. Raises FileNotFoundError if there is nothing to copy."""
        with self._read():
            tried(lambda: self.fs.get_file(self.key, os.fspath(file)))

    def _read(self) -> Any:
        return explained(self, "read")

    def _written(self) -> Any:
        return writing(self)


def as_path(path: str | os.PathLike) -> Path:
    """What a person named: a `BucketPath` for gs:// and s3://, also if it went through pathlib, else a local path.

    Raises UserError for a bucket's path without a bucket, without the extra, or of another scheme.
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
        raise UserError(f"{first}// is not read or written; local paths, gs:// and s3:// are")
    return made


def with_paths(value: T) -> T:
    """Settings with every path in them, at any depth of dataclasses and tuples, made by `as_path`. Raises as that."""
    return _with_paths(value)  # type: ignore[no-any-return]


def _with_paths(value: Any) -> Any:
    if isinstance(value, Path):
        return as_path(value)
    if type(value) is tuple:
        return tuple(map(_with_paths, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        before = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        after = {name: _with_paths(each) for name, each in before.items()}
        # An equal path may be of the other class.
        changed = {name: each for name, each in after.items() if not _same(each, before[name])}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def _same(one: Any, other: Any) -> bool:
    if type(one) is tuple:
        return all(map(_same, one, other))
    return one is other


def refuse(path: Path | None, what: str) -> None:
    """Raises UserError if this is in a bucket; for what cannot be there, before any work.

    Args:
      what: of the command it is, such as "--compare".
    """
    if isinstance(path, BucketPath):
        raise UserError(f"{what} {path} cannot be in a bucket; name a local path")
