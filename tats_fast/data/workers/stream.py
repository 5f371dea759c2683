"""Processes that work off items side by side and hand over the parts of each one by one.

``pool.Workers`` gives one outcome per item, which for the windows of a two-hour video would be
gigabytes. Here a process gives a part at a time and is held back by its full pipe until we read on,
so what is in memory is a part or so per process. As there, the item whose process dies or hangs
comes back as ``Lost``, and another process takes over.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Generic, TypeVar

from tats_fast.data.workers.processes import DEPTH, Answer, Lost, Worker

Item = TypeVar("Item")
Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The end of an item all of whose parts have come, and what the function returned."""

    result: Result


def stream_parts(
    function: Callable[[Item], Generator[Part, None, Result]],
    items: Iterable[Item],
    count: int,
    timeout: float | None = None,
) -> Generator[tuple[Item, Part | Done[Result] | Lost], None, None]:
    """(item, part) for each part that ``function(item)`` yields, in ``count`` forked processes.

    The parts of one item come in order and end with ``Done`` or, after any of them, with ``Lost``;
    items come interleaved. ``items`` is read lazily. A part that nobody reads keeps its process
    from computing the one after the next.

    What the function closes over is inherited; parts, results and items are pickled.
    timeout: seconds that one part may take, not counting the time it waits to be read; none = no
        limit.

    Read the generator to its end or close it (``contextlib.closing``); that ends the processes.
    Raises what ``function`` raised, and ``ValueError`` unless there is at least one process.
    """
    if count < 1:
        raise ValueError(f"expected at least 1 process, got {count}")
    return _stream(function, iter(items), count, timeout)


def _stream(
    function: Callable[[Item], Generator[Part, None, Result]],
    source: Iterator[Item],
    count: int,
    timeout: float | None,
) -> Generator[tuple[Item, Part | Done[Result] | Lost], None, None]:
    again: deque[Item] = deque()  # handed to a process that died before their turn
    workers: list[Worker] = []

    def supply(worker: Worker, depth: int = DEPTH) -> None:
        while len(worker.items) < depth:
            if again:
                item = again.popleft()
            else:
                try:
                    item = next(source)
                except StopIteration:
                    return
            worker.send(item)

    try:
        workers += [Worker(_serve, function) for _ in range(count)]
        for depth in range(1, DEPTH + 1):  # one each before the first gets its second
            for worker in workers:
                supply(worker, depth)
        while any(worker.items for worker in workers):
            _wait(workers, timeout)
            for number, worker in enumerate(workers):
                if not worker.items:
                    continue
                alive = worker.alive()
                answer = worker.receive()
                if answer is not None:
                    item, event = worker.items[0], answer.get()
                    if isinstance(event, Done):
                        worker.items.popleft()
                        supply(worker)
                    yield item, event
                    continue
                lost = worker.overdue(timeout) if alive else worker.cause_of_death()
                if lost is not None:
                    worker.end()
                    # The first item is the one it worked on; the next had not begun.
                    again.extend(list(worker.items)[1:])
                    workers[number] = Worker(_serve, function)
                    supply(workers[number])
                    yield worker.items[0], lost
    finally:
        for worker in workers:
            worker.end()


def _wait(workers: list[Worker], timeout: float | None) -> None:
    """Return when there is something to read, a process has died, or one has run out of time."""
    busy = [worker for worker in workers if worker.items]
    patience = None
    if timeout is not None:
        patience = max(0.0, min(w.started for w in busy) + timeout - time.monotonic())
    handles = [handle for worker in busy for handle in (worker.pipe, worker.process.sentinel)]
    connection.wait(handles, patience)


def _serve(
    function: Callable[[Any], Generator[Any, None, Any]], pipe: connection.Connection
) -> None:
    """Answer items part by part."""
    while True:
        parts = function(pipe.recv())
        last = False
        while not last:
            answer = Answer.of(_next, parts)
            pipe.send(answer)
            last = answer.error is not None or isinstance(answer.result, Done)


def _next(parts: Generator[Any, None, Any]) -> Any:
    """The next part, or ``Done`` where there is none."""
    try:
        return next(parts)
    except StopIteration as end:
        return Done(end.value)
