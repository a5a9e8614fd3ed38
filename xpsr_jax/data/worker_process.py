"""Set-up of a process that makes data, and the start of a worker process."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

import cv2
import threadpoolctl

# glibc's names of settings.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def tune() -> None:
    """Must be called in every process that makes data. It may be called more than once.

    Batches are made in parallel, so OpenCV and numpy's matrix products are limited to one thread each; more threads
    would wait for each other. Freed memory is kept for the next image. By default glibc returns every array of a few
    megabytes to the system immediately. Getting it back page by page takes a quarter of the time (docs/train/data.md).
    """
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1, user_api="blas")
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # musl does not have it
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest allowed value
        mallopt(_TRIM_THRESHOLD, 512 << 20)


def begin_worker(*_: int) -> None:
    """Must be called first in a worker process that makes data for its parent."""
    tune()
    # Ctrl-C and a cluster's SIGTERM reach every process. Workers ignore them; the parent ends its workers itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent ends, because a killed parent cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
