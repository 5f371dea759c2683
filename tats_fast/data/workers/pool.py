"""Processes that work off items side by side, where a bad item costs itself and nothing else.

Decoders crash and hang on broken videos. A standard process pool breaks with its first dead worker,
and torch's DataLoader raises in the middle of whatever the training process is doing. Here the item
whose process died or ran out of time comes back as ``Lost``, and another process takes over.

``Workers`` gives one outcome per item, ``stream_parts`` the parts of each one by one: the windows
of a two-hour video would be gigabytes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

from tats_fast.data.workers import processes
from tats_fast.data.workers.processes import DEPTH, Done, Lost, Worker, wait_for

Item = TypeVar("Item")
Part = TypeVar("Part")
Result = TypeVar("Result")


class Workers(Generic[Item, Result]):
    """``count`` forked processes that call a function, or a generator function part by part.

    Not thread-safe: one thread submits and collects. Use it as a context manager, or ``close`` it.

    Args:
        function: what it closes over is inherited, not sent through a pipe, so shared memory works.
        count: processes.
        timeout: seconds that an outcome or a part may take, not counting the time it waits to be
            read; none = no limit.

    Raises:
        ValueError: less than one process.
    """

    def __init__(
        self, function: Callable[[Item], Any], count: int, timeout: float | None = None
    ) -> None:
        if count < 1:
            raise ValueError(f"expected at least 1 process, got {count}")
        self.replaced = 0
        """Processes that had to be replaced."""
        self._function, self._timeout = function, timeout
        self._queue: deque[tuple[int, Item]] = deque()
        self._tickets = 0
        self._workers = [Worker(function) for _ in range(count)]

    def __enter__(self) -> Workers[Item, Result]:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, item: Any) -> int:
        """Queue an item; returns the ticket under which its parts come."""
        ticket = self._tickets
        self._tickets += 1
        self._queue.append((ticket, item))
        self._hand_out()
        return ticket

    def collect(self, wait: float = math.inf) -> list[tuple[int, Result | Lost]]:
        """Wait up to ``wait`` s for an outcome; (ticket, outcome) in the order of completion.

        [] where nothing was submitted or nothing came. Raises what the function raised.
        """
        outcomes: list[tuple[int, Result | Lost]] = []
        until = time.monotonic() + wait
        while not outcomes and any(worker.items for worker in self._workers):
            outcomes += [(ticket, _outcome(event)) for ticket, event in self._events(until)]
            if time.monotonic() > until:
                break
        return outcomes

    def map(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result | Lost]]:
        """(item, outcome) of every item, in the order of completion; reads ``items`` lazily."""
        return ((item, _outcome(event)) for item, event in self.stream(items))

    def stream(self, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        """(item, part, ``Done`` or ``Lost``) of every item, interleaved; reads ``items`` lazily."""
        source, pending = iter(items), {}
        while True:
            for item in islice(source, DEPTH * len(self._workers) - len(pending)):
                pending[self.submit(item)] = item
            if not pending:
                return
            for ticket, event in self._events():
                is_last = isinstance(event, Done | Lost)
                yield pending.pop(ticket) if is_last else pending[ticket], event

    def close(self) -> None:
        """End all processes, also those in the middle of an item."""
        self._queue.clear()
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _events(self, until: float = math.inf) -> Iterator[tuple[int, Any]]:
        """Wait for one event, until a time at most; (ticket, event) of those that have come.

        Each is read when it is asked for, and one at most of each process.
        """
        wait_for(self._workers, self._timeout, until)
        for number, worker in enumerate(self._workers):
            if not worker.items:
                continue
            ticket, _ = worker.items[0]
            alive = worker.process.is_alive()  # asked first: what it sent before it died counts
            answer = worker.receive()
            if answer is not None:
                yield ticket, answer.get()
            elif (lost := worker.lost(self._timeout, alive)) is not None:
                self._replace(number)
                yield ticket, lost
        self._hand_out()

    def _hand_out(self) -> None:
        """Give queued items to the processes with the least to do."""
        while self._queue:
            number = min(range(len(self._workers)), key=lambda n: self._workers[n].load)
            worker = self._workers[number]
            if worker.load >= DEPTH:
                return
            if not worker.items and not worker.process.is_alive():
                self._replace(number)
            elif not worker.items and worker.taken >= processes.LIFE:
                worker.end()
                self._workers[number] = Worker(self._function)
            else:
                worker.send(self._queue.popleft())

    def _replace(self, number: int) -> None:
        """A new process for a lost one and for what it had not begun: all but its first item."""
        worker = self._workers[number]
        worker.end()
        self._queue.extendleft(reversed(list(worker.items)[1:]))
        self._workers[number] = Worker(self._function)
        self.replaced += 1


def stream_parts(
    function: Callable[[Item], Generator[Part, None, Result]],
    items: Iterable[Item],
    count: int,
    timeout: float | None = None,
) -> Generator[tuple[Item, Part | Done[Result] | Lost], None, None]:
    """(item, part) for each part that ``function(item)`` yields, in ``count`` forked processes.

    The parts of one item come in order and end with ``Done`` or, after any of them, with ``Lost``;
    items come interleaved. ``items`` is read lazily. A part that nobody reads keeps its process
    from computing the one after the next, so what is in memory is a part or so per process.

    Read the generator to its end or close it (``contextlib.closing``); that ends the processes. The
    other arguments and errors are those of ``Workers``; it raises what ``function`` raised.
    """
    with Workers(function, count, timeout) as workers:
        yield from workers.stream(items)


def _outcome(event: Done[Result] | Lost) -> Result | Lost:
    return event.result if isinstance(event, Done) else event
