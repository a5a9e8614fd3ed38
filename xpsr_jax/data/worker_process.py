"""How a process begins that makes data for another."""

import multiprocessing
import os
import signal
import threading

import cv2


def begin(*_: int) -> None:
    """To be called first in the process."""
    cv2.setNumThreads(1)
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
