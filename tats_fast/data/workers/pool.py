"""Processes that work off items side by side, where a bad item costs itself and nothing else.

Decoders crash and hang on broken videos. A standard process pool breaks with its first dead worker,
and torch's DataLoader raises in the middle of whatever the training process is doing. Here the item
whose process died or ran out of time comes back as ``Lost``, and another process takes over.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any, Generic, TypeVar

from tats_fast.data.workers.processes import DEPTH, Answer, Lost, Worker

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items after which a process makes room for a fresh one: decoding leaks some 300 bytes an item.
_LIFE = 10_000


class Workers(Generic[Item, Result]):
    """``count`` forked processes that call ``function(item)``.

    What the function closes over is inherited, not sent through a pipe, so shared memory works.
    timeout: seconds that one item may take; none = no limit.

    Not thread-safe: one thread submits and collects. Use it as a context manager, or ``close`` it.
    """

    def __init__(
        self, function: Callable[[Item], Result], count: int, timeout: float | None = None
    ) -> None:
        """Raises ``ValueError`` unless there is at least one process."""
        if count < 1:
            raise ValueError(f"expected at least 1 process, got {count}")
        self.function = function
        self.timeout = timeout
        self.replaced = 0
        """Processes that had to be replaced."""
        self._queue: deque[tuple[int, Item]] = deque()
        self._tickets = 0
        self._workers = [_Worker(function) for _ in range(count)]

    def __enter__(self) -> Workers[Item, Result]:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, item: Item) -> int:
        """Queue an item; returns the ticket under which ``collect`` gives its outcome."""
        ticket = self._tickets
        self._tickets += 1
        self._queue.append((ticket, item))
        self._hand_out()
        return ticket

    def collect(self, wait: float = math.inf) -> list[tuple[int, Result | Lost]]:
        """Wait up to ``wait`` s for an outcome; (ticket, outcome) in the order of completion.

        [] where nothing was submitted or nothing came. Raises what ``function`` raised.
        """
        done: list[tuple[int, Result | Lost]] = []
        until = time.monotonic() + wait
        while not done and (self._queue or any(worker.items for worker in self._workers)):
            patience = min(self._next_overdue(), until) - time.monotonic()
            connection.wait(
                [w.pipe for w in self._workers] + [w.process.sentinel for w in self._workers],
                None if patience == math.inf else max(0.0, patience),
            )
            for number, worker in enumerate(self._workers):
                alive = worker.alive()
                done += worker.results()
                lost = worker.overdue(self.timeout) if alive else worker.cause_of_death()
                if lost is not None:
                    done += self._replace(number, lost)
            self._hand_out()
            if time.monotonic() > until:
                break
        return done

    def map(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result | Lost]]:
        """(item, outcome) of every item, in the order of completion; reads ``items`` lazily."""
        source, pending = iter(items), {}
        ahead = DEPTH * len(self._workers)
        while True:
            while len(pending) < ahead:
                try:
                    item = next(source)
                except StopIteration:
                    ahead = 0
                    break
                pending[self.submit(item)] = item
            if not pending:
                return
            for ticket, outcome in self.collect():
                yield pending.pop(ticket), outcome

    def close(self) -> None:
        """End all processes, also those in the middle of an item."""
        self._queue.clear()
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _hand_out(self) -> None:
        """Give queued items to the processes with the least to do."""
        while self._queue:
            number = min(range(len(self._workers)), key=lambda n: self._workers[n].load)
            worker = self._workers[number]
            if worker.load >= DEPTH:
                return
            if not worker.items and not worker.alive():
                self._replace(number, worker.cause_of_death())
            elif not worker.items and worker.taken >= _LIFE:
                worker.end()
                self._workers[number] = _Worker(self.function)
            else:
                worker.send(self._queue.popleft())

    def _next_overdue(self) -> float:
        """When, on the monotonic clock, the next process runs out of time."""
        if self.timeout is None:
            return math.inf
        started = [worker.started for worker in self._workers if worker.items]
        return min(started, default=math.inf) + self.timeout

    def _replace(self, number: int, lost: Lost) -> list[tuple[int, Lost]]:
        worker = self._workers[number]
        worker.end()
        # The first item is the one it worked on; the next had not begun.
        items = list(worker.items)
        self._queue.extendleft(reversed(items[1:]))
        self._workers[number] = _Worker(self.function)
        self.replaced += 1
        return [(ticket, lost) for ticket, _ in items[:1]]


class _Worker(Worker):
    """Its items are pairs of ticket and item."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__(_serve, function)
        self.taken = 0
        """Items it was ever given."""

    @property
    def load(self) -> int:
        """Items in its hands; as if they were full where it has had its last."""
        return DEPTH if self.items and self.taken >= _LIFE else len(self.items)

    def send(self, item: tuple[int, Any]) -> None:
        super().send(item)
        self.taken += 1

    def results(self) -> list[tuple[int, Any]]:
        """What it has finished. Raises what the function raised."""
        done = []
        while self.items and (answer := self.receive()) is not None:
            ticket, _ = self.items.popleft()
            done.append((ticket, answer.get()))
        return done


def _serve(function: Callable[[Any], Any], pipe: connection.Connection) -> None:
    """Answer items one by one."""
    while True:
        _, item = pipe.recv()
        pipe.send(Answer.of(function, item))
