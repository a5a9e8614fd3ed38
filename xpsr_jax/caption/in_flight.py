"""Calls a function on many items in parallel, in threads."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from xpsr_jax.errors import UserError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Exceptions that one item can cause, because it is too large, nested too deeply or unreadable. Others are bugs.
_OF_ONE_ITEM = (OSError, ValueError, OverflowError, MemoryError, RecursionError)


class Stop(UserError):
    """An error that would occur for every further image too. It ends the work."""


def in_flight(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, *, ordered: bool = False
) -> Iterator[tuple[_Item, _Result | UserError]]:
    """Calls `function` on each item, in threads. Yields each item with its result as soon as it is done.

    Items are taken when they are needed, in the caller's thread. If an item causes an error, its result is a UserError.
    `Stop` and bugs are raised here. A caller that closes the iterator does not wait for running calls, because the
    threads are daemons, unlike those of concurrent.futures. A request may take minutes until its timeout.

    Args:
      function: called on each item.
      items: the items.
      workers: number of threads.
      ordered: yield the results in the order of the items.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    early: dict[int, tuple[_Item, _Result | UserError]] = {}

    def work() -> None:
        while (call := todo.get()) is not None:
            number, item = call
            try:
                done.put((number, item, function(item)))
            except _OF_ONE_ITEM as error:
                done.put((number, item, UserError(f"{type(error).__name__}: {error}".removesuffix(": "))))
            except BaseException as error:
                done.put((number, item, error))

    def result(wanted: int) -> tuple[_Item, _Result | UserError]:
        while wanted not in early:
            number, item, value = done.get()
            if isinstance(value, BaseException) and (isinstance(value, Stop) or not isinstance(value, UserError)):
                raise value
            early[number if ordered else wanted] = item, value
        return early.pop(wanted)

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    asked = answered = 0
    try:
        for item in items:
            todo.put((asked, item))
            asked += 1
            while asked - answered >= 2 * workers or (asked > answered and not done.empty()):
                yield result(answered)
                answered += 1
        while answered < asked:
            yield result(answered)
            answered += 1
    finally:
        with contextlib.suppress(queue.Empty):  # drop the calls that have not begun
            while True:
                todo.get_nowait()
        for _ in range(workers):
            todo.put(None)
