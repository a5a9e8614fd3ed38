"""Many calls of a function at once, in threads."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from xpsr_jax.errors import UserError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# What a single item can cause: it is too large, nested too deeply, unreadable. Any other exception is a bug.
_OF_ONE_ITEM = (OSError, ValueError, OverflowError, MemoryError, RecursionError)


class Stop(UserError):
    """An error that every further image would have too: the work ends."""


def in_flight(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, *, ordered: bool = False
) -> Iterator[tuple[_Item, _Result | UserError]]:
    """Calls `function` on each item, in threads: the items and what came of them, as soon as they are done.

    Items are taken when they are wanted, by the caller's thread. What is wrong with one item is its result, as a
    UserError; `Stop` and bugs are raised here. A caller that stops listening does not wait for calls that are under
    way: the threads are daemons, unlike those of concurrent.futures, and a request may take minutes to time out.

    Args:
      workers: how many threads.
      ordered: results are in the order of the items.
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
        with contextlib.suppress(queue.Empty):  # what nobody waits for is not begun
            while True:
                todo.get_nowait()
        for _ in range(workers):
            todo.put(None)
