"""Processes that work off items side by side, where a bad item costs itself and nothing else.

Decoders crash and hang on broken videos. A standard process pool breaks with its first dead worker,
and torch's DataLoader raises in the middle of whatever the training process is doing. Here the item
whose process died or ran out of time comes back as ``Lost``, and another process takes over.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items in a process's hands: the one it works on and the next, so that it need not wait for us.
_DEPTH = 2
# Items after which a process makes room for a fresh one: decoding leaks some 300 bytes an item.
_LIFE = 10_000
# Seconds between two looks of an idle process at whether its parent is still there.
_PARENT_CHECK = 5.0


@dataclass(frozen=True)
class Lost:
    """The outcome of an item whose process died or took too long, with one short ``reason``."""

    reason: str
    died: bool = True
    """False where it took too long."""


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
                alive = worker.process.is_alive()  # asked first: what it sent before it died counts
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
        ahead = _DEPTH * len(self._workers)
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
            if worker.load >= _DEPTH:
                return
            if not worker.items and not worker.process.is_alive():
                self._replace(number, worker.cause_of_death())
            elif not worker.items and worker.taken >= _LIFE:
                worker.end()
                self._workers[number] = _Worker(self.function)
            else:
                worker.send(*self._queue.popleft())

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
        self._queue.extendleft(reversed(worker.items[1:]))
        self._workers[number] = _Worker(self.function)
        self.replaced += 1
        return [(ticket, lost) for ticket, _ in worker.items[:1]]


@dataclass
class _Worker:
    """One process, its pipe, and the items in its hands."""

    function: Callable[[Any], Any]
    items: list[tuple[int, Any]] = field(default_factory=list)
    started: float = 0.0
    taken: int = 0
    """Items it was ever given."""

    def __post_init__(self) -> None:
        # Forked: it starts in milliseconds, and shared memory needs no name in /dev/shm, which
        # containers keep small.
        context = multiprocessing.get_context("fork")
        self.pipe, remote = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(self.function, remote, os.getpid()), daemon=True
        )
        with _undisturbed():
            self.process.start()
        remote.close()

    @property
    def load(self) -> int:
        """Items in its hands; as if they were full where it has had its last."""
        return _DEPTH if self.items and self.taken >= _LIFE else len(self.items)

    def send(self, ticket: int, item: Any) -> None:
        if not self.items:
            self.started = time.monotonic()
        self.items.append((ticket, item))
        self.taken += 1
        with contextlib.suppress(BrokenPipeError):  # it just died; ``collect`` finds out
            self.pipe.send(item)

    def results(self) -> list[tuple[int, Any]]:
        """What it has finished. Raises what the function raised."""
        done = []
        try:
            while self.items and self.pipe.poll():
                result, error, trace = self.pipe.recv()
                ticket, _ = self.items.pop(0)
                self.started = time.monotonic()
                if error is not None:
                    raise error from RuntimeError(f"in a worker process:\n{trace}")
                done.append((ticket, result))
        except (EOFError, ConnectionResetError):
            pass
        return done

    def cause_of_death(self) -> Lost:
        code = self.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
        return Lost(f"the process reading it died ({how})")

    def overdue(self, timeout: float | None) -> Lost | None:
        """Why this process must be replaced although it lives, or None."""
        if timeout is not None and self.items and time.monotonic() - self.started > timeout:
            return Lost(f"took longer than {timeout:g} s", died=False)
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps from a new process what it has not yet arranged for: a Ctrl-C, and the collection of
    its parent's garbage, whose finalizers may rely on threads that it does not have (DALI's do)."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(function: Callable[[Any], Any], pipe: connection.Connection, parent: int) -> None:
    """A worker process: answer items until the parent closes the pipe or is gone."""
    # Ctrl-C reaches the whole process group, and the parent still wants the items in hand. What
    # else the parent does on a signal is no business of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    gc.freeze()
    gc.enable()
    while True:
        while not pipe.poll(_PARENT_CHECK):
            # Sister processes hold copies of the pipe, so the parent's death does not close it.
            if os.getppid() != parent:
                return
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = (function(item), None, "")
        except Exception as error:
            answer = (None, error, traceback.format_exc())
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
