"""Many calls at once."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from xpsr_jax.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stop(UserError):
    """What is wrong is wrong for every image: the work ends."""


def in_flight(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result | UserError]]:
    """Calls `function` on each item in so many threads: the items and what came of them, in the order of completion.

    Items are taken when they are wanted, by the caller's thread. An error of one item is its result; `Stop`, and what
    is no UserError, is raised here. Whoever stops listening does not wait for calls that are under way: the threads are
    daemons, unlike those of concurrent.futures, and a request may take minutes to time out.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        while (call := todo.get()) is not None:
            [item] = call
            try:
                done.put((item, function(item)))
            except BaseException as error:
                done.put((item, error))

    def result() -> tuple[Item, Result | UserError]:
        item, value = done.get()
        if isinstance(value, BaseException) and (isinstance(value, Stop) or not isinstance(value, UserError)):
            raise value
        return item, value

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    waiting = 0
    try:
        for item in items:
            todo.put([item])
            waiting += 1
            while waiting >= 2 * workers or (waiting and not done.empty()):
                yield result()
                waiting -= 1
        for _ in range(waiting):
            yield result()
    finally:
        with contextlib.suppress(queue.Empty):  # what nobody waits for is not begun
            while True:
                todo.get_nowait()
        for _ in range(workers):
            todo.put(None)
