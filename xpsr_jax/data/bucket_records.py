"""Records of ArrayRecord files in a bucket. Files in use are copied to the local cache."""

import bisect
import collections
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from xpsr_jax.buckets.cache import Copy, bound, copy_file, version_of
from xpsr_jax.buckets.paths import BucketPath
from xpsr_jax.json_files import read_json, write_json
from xpsr_jax.machine import cache_folder


class BucketRecords:
    """Records by number. A file is copied when its first record is needed (`buckets.cache`).

    If all files together are larger than the cache, the least recently used ones are removed, and copied again when
    they are needed. The number of records in each file is determined once and stored.

    Raises UserError if a file cannot be copied or is larger than the cache. A broken file raises ArrayRecord's errors.
    """

    def __init__(self, files: Sequence[BucketPath]):
        self._files = tuple(files)
        self._begin_empty()
        self._ends = list(itertools.accumulate(map(self._count, range(len(files)))))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        number = bisect.bisect_right(self._ends, index)
        record: bytes = self._records(number)[index - (self._ends[number - 1] if number else 0)]
        return record

    def _records(self, number: int) -> Any:
        """The records of one file, read from its open local copy."""
        with self._lock:
            if number not in self._open:
                copy = copy_file(self._files[number])
                self._open[number] = copy, ArrayRecordDataSource([str(copy.path)])
                # Half of the cache. The other half is for other files, including those of other processes.
                while len(self._open) > 1 and sum(each.size for each, _ in self._open.values()) > bound() / 2:
                    _, (oldest, _) = self._open.popitem(last=False)
                    oldest.close()
            self._open.move_to_end(number)
            return self._open[number][1]

    def _count(self, number: int) -> int:
        file = self._files[number]
        kept = cache_folder()
        known = kept and kept / "records" / f"{file.name}-{version_of(file.info())}.json".replace("/", "-")
        if known and known.is_file() and (told := read_json(known)).get("file") == str(file):
            return int(told["records"])
        count = len(self._records(number))
        if known:
            known.parent.mkdir(parents=True, exist_ok=True)
            write_json({"file": str(file), "records": count}, known)
        return count

    def _begin_empty(self) -> None:
        self._lock = threading.Lock()
        self._open: collections.OrderedDict[int, tuple[Copy, Any]] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_ends": self._ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin_empty()
