"""Processes that work off items side by side and hand over the parts of each one by one.

``pool.Workers`` gives one outcome per item, which for the windows of a two-hour video would be
gigabytes. Here a process gives a part at a time and is held back by its full pipe until we read on,
so what is in memory is a part or so per process. As there, the item whose process dies or hangs
comes back as ``Lost``, and another process takes over.
"""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import Any, Generic, TypeVar

from tats_fast.data.pool import Lost, _undisturbed

Item = TypeVar("Item")
Part = TypeVar("Part")
Result = TypeVar("Result")

# Items in a process's hands: the one it works on and the next, so that it need not wait for us.
_DEPTH = 2
# Seconds between two looks of a process at whether its parent is still there.
_PARENT_CHECK = 5.0


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
    workers: list[_Worker] = []

    def supply(worker: _Worker, depth: int = _DEPTH) -> None:
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
        workers += [_Worker(function) for _ in range(count)]
        for depth in range(1, _DEPTH + 1):  # one each before the first gets its second
            for worker in workers:
                supply(worker, depth)
        while any(worker.items for worker in workers):
            _wait(workers, timeout)
            for number, worker in enumerate(workers):
                if not worker.items:
                    continue
                alive = worker.alive()  # asked first: what it sent before it died counts
                message = worker.receive()
                if message is not None:
                    item = worker.items[0]
                    if isinstance(message, Done):
                        worker.items.popleft()
                        supply(worker)
                    yield item, message
                    continue
                lost = worker.overdue(timeout) if alive else worker.cause_of_death()
                if lost is not None:
                    worker.end()
                    # The first item is the one it worked on; the next had not begun.
                    again.extend(list(worker.items)[1:])
                    workers[number] = _Worker(function)
                    supply(workers[number])
                    yield worker.items[0], lost
    finally:
        for worker in workers:
            worker.end()


def _wait(workers: list[_Worker], timeout: float | None) -> None:
    """Return when there is something to read, a process has died, or one has run out of time."""
    busy = [worker for worker in workers if worker.items]
    patience = None
    if timeout is not None:
        patience = max(0.0, min(w.started for w in busy) + timeout - time.monotonic())
    handles = [handle for worker in busy for handle in (worker.pipe, worker.process.sentinel)]
    connection.wait(handles, patience)


@dataclass
class _Worker:
    """One process, its pipe, and the items in its hands."""

    function: Callable[[Any], Generator[Any, None, Any]]
    items: deque[Any] = field(default_factory=deque)
    started: float = math.inf
    """When, on the monotonic clock, it could begin with the part that comes next."""

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, remote = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(self.function, remote, os.getpid()), daemon=True
        )
        with _undisturbed():
            self.process.start()
        remote.close()

    def send(self, item: Any) -> None:
        if not self.items:
            self.started = time.monotonic()
        self.items.append(item)
        with contextlib.suppress(OSError):  # it just died; the reader finds out
            self.pipe.send(item)

    def receive(self) -> Any | None:
        """The next part or ``Done``; None where there is none. Raises what the function raised."""
        try:
            if not self.pipe.poll():
                return None
            message, error, trace = self.pipe.recv()
        except (EOFError, OSError):  # it died, maybe in the middle of a message
            return None
        self.started = time.monotonic()
        if error is not None:
            raise error from RuntimeError(f"in a worker process:\n{trace}")
        return message

    def alive(self) -> bool:
        return self.process.is_alive()

    def cause_of_death(self) -> Lost:
        code = self.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
        return Lost(f"the process reading it died ({how})")

    def overdue(self, timeout: float | None) -> Lost | None:
        """Why this process must be replaced although it lives, or None."""
        if timeout is not None and time.monotonic() - self.started > timeout:
            return Lost(f"took longer than {timeout:g} s", died=False)
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _serve(
    function: Callable[[Any], Generator[Any, None, Any]], pipe: connection.Connection, parent: int
) -> None:
    """A worker process: answers items until it is killed or its parent is gone."""
    # Ctrl-C reaches the whole process group, and the parent decides. What else the parent does on a
    # signal is no business of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    gc.freeze()
    gc.enable()
    # Every process holds copies of the pipes of those before it, so the parent's death closes none,
    # and a write into a full one would wait for ever.
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    while True:
        parts = function(pipe.recv())
        last = False
        while not last:
            try:
                answer = (next(parts), None, "")
            except StopIteration as end:
                answer, last = (Done(end.value), None, ""), True
            except Exception as error:
                answer, last = (None, error, traceback.format_exc()), True
            pipe.send(answer)


def _leave_with(parent: int) -> None:
    """End this process soon after its parent has ended, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK)
    os._exit(1)
