"""How a process that makes data does so without getting in its own way, and begins if it does so for another."""

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
    """To be called in every process that makes data, if need be again.

    Batches are made in parallel, so OpenCV and numpy's matrix products keep to one thread each: threads of their own
    would wait for each other. And freed memory is kept for the next image: glibc would give every array of a few
    megabytes back at once, and to get it again, page by page, takes a quarter of the time (docs/train/data.md).
    """
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1, user_api="blas")
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # musl has none
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
        mallopt(_TRIM_THRESHOLD, 512 << 20)


def begin_worker(*_: int) -> None:
    """To be called first in a process that makes data for another."""
    tune()
    # Ctrl-C and a cluster's SIGTERM reach every process. The one that needs this one's data ends it in good order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
