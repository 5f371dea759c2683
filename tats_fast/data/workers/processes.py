"""One forked process that answers what it is sent, part by part."""

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
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NamedTuple, TypeVar

from tats_fast.data.pyav import forget_scalers

Result = TypeVar("Result")

# Items in a process's hands: the one it works on and the next, so that it need not wait for us.
DEPTH = 2
# Items after which a process makes room for a fresh one: decoding leaks some 300 bytes an item.
LIFE = 10_000
# Seconds between two looks of a process at whether its parent is still there.
_PARENT_CHECK = 5.0


@dataclass(frozen=True)
class Lost:
    """The outcome of an item whose process died or took too long, with one short ``reason``."""

    reason: str
    died: bool = True
    """False where it took too long."""


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The end of an item all of whose parts have come, and what the function returned."""

    result: Result


class Answer(NamedTuple):
    """A part or ``Done`` of what a function gave, or what it raised, on its way through a pipe."""

    result: Any
    error: Exception | None = None
    trace: str = ""

    def is_last(self) -> bool:
        """Whether no further one of the same item comes."""
        return self.error is not None or isinstance(self.result, Done)

    def get(self) -> Any:
        """The result. Raises what the function raised."""
        if self.error is not None:
            raise self.error from RuntimeError(f"in a worker process:\n{self.trace}")
        return self.result


class Worker:
    """One process that calls a function, its pipe, and the items in its hands.

    Items are pairs of a ticket and what the function is called with. The process lives until
    ``end``, or until its parent is gone.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.items: deque[tuple[int, Any]] = deque()
        self.taken = 0
        """Items it was ever given."""
        self.started = math.inf
        """When, on the monotonic clock, it could begin with what it must answer next."""
        # Forked: it starts in milliseconds, and shared memory needs no name in /dev/shm, which
        # containers keep small.
        context = multiprocessing.get_context("fork")
        self.pipe, remote = context.Pipe()
        self.process = context.Process(
            target=_begin, args=(function, remote, os.getpid()), daemon=True
        )
        with _undisturbed():
            self.process.start()
        remote.close()

    @property
    def load(self) -> int:
        """Items in its hands; as if they were full where it has had its last."""
        return DEPTH if self.items and self.taken >= LIFE else len(self.items)

    def send(self, item: tuple[int, Any]) -> None:
        """Put an item into its hands."""
        if not self.items:
            self.started = time.monotonic()
        self.items.append(item)
        self.taken += 1
        with contextlib.suppress(OSError):  # it just died; the reader finds out
            self.pipe.send(item[1])

    def receive(self) -> Answer | None:
        """Its next answer; None where there is none yet, or none will come as it is dead."""
        try:
            if not self.pipe.poll():
                return None
            answer = self.pipe.recv()
        except (EOFError, OSError):  # it died, maybe in the middle of an answer
            return None
        self.started = time.monotonic()
        if answer.is_last():
            self.items.popleft()
        return answer

    def lost(self, timeout: float | None, alive: bool) -> Lost | None:
        """Why another process must take its place, or None.

        Args:
            timeout: seconds that an answer may take; none = no limit.
            alive: whether it was before its last answers were received, which count.
        """
        if not alive:
            code = self.process.exitcode
            how = signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
            return Lost(f"the process reading it died ({how})")
        if timeout is not None and self.items and time.monotonic() - self.started > timeout:
            return Lost(f"took longer than {timeout:g} s", died=False)
        return None

    def end(self) -> None:
        """Kill the process, also in the middle of an item."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def wait_for(workers: Iterable[Worker], timeout: float | None, until: float = math.inf) -> None:
    """Return when there is something to read, a process has died, or one has run out of time.

    Args:
        workers: of them, those with items in hand are waited for.
        timeout: seconds that an answer may take; none = no limit.
        until: time of the monotonic clock at which to return in any case.
    """
    busy = [worker for worker in workers if worker.items]
    if timeout is not None:
        until = min([until, *(worker.started + timeout for worker in busy)])
    handles = [handle for worker in busy for handle in (worker.pipe, worker.process.sentinel)]
    wait(handles, None if until == math.inf else max(0.0, until - time.monotonic()))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps from a new process what it has not yet arranged for: a Ctrl-C, and the collection of
    its parent's garbage, whose finalizers may rely on threads that it does not have (DALI's do, and
    those of PyAV's scalers)."""
    forget_scalers()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(function: Callable[[Any], Any], pipe: Connection, parent: int) -> None:
    """The new process: settle in, then answer items part by part."""
    # Ctrl-C reaches the whole process group, and the parent decides what becomes of the items in
    # hand. What else the parent does on a signal is no business of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    gc.freeze()
    gc.enable()
    # A forked process holds copies of the parent's ends of the pipes, its own included. So the
    # parent's death closes none: a read would wait for ever, and so would a write into a full one.
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    while True:
        for answer in _answers(function, pipe.recv()):
            pipe.send(answer)


def _answers(function: Callable[[Any], Any], item: Any) -> Iterator[Answer]:
    """All answers to one item."""

    def parts() -> Iterator[Any]:
        result = function(item)
        if isinstance(result, Generator):
            result = yield from result
        yield Done(result)

    try:
        yield from map(Answer, parts())
    except Exception as error:
        yield Answer(None, error, traceback.format_exc())


def _leave_with(parent: int) -> None:
    """End this process soon after its parent has ended, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK)
    os._exit(1)
