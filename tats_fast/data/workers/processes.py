"""One forked process that answers what it is sent: what ``pool`` and ``stream`` have in common."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

Serve = Callable[[Callable[..., Any], Connection], None]
"""``serve(function, pipe)`` receives items and sends ``Answer``s, for ever."""

# Items in a process's hands: the one it works on and the next, so that it need not wait for us.
DEPTH = 2
# Seconds between two looks of a process at whether its parent is still there.
_PARENT_CHECK = 5.0


@dataclass(frozen=True)
class Lost:
    """The outcome of an item whose process died or took too long, with one short ``reason``."""

    reason: str
    died: bool = True
    """False where it took too long."""


class Answer(NamedTuple):
    """What a function gave, or what it raised, on its way through a pipe."""

    result: Any
    error: Exception | None = None
    trace: str = ""

    @classmethod
    def of(cls, function: Callable[..., Any], *args: Any) -> Answer:
        """What ``function(*args)`` gives or raises."""
        try:
            return cls(function(*args))
        except Exception as error:
            return cls(None, error, traceback.format_exc())

    def get(self) -> Any:
        """The result. Raises what the function raised."""
        if self.error is not None:
            raise self.error from RuntimeError(f"in a worker process:\n{self.trace}")
        return self.result


class Worker:
    """One process that serves ``function``, its pipe, and the items in its hands.

    It lives until ``end``, or until its parent is gone. What the function closes over is inherited,
    not sent through the pipe.
    """

    def __init__(self, serve: Serve, function: Callable[..., Any]) -> None:
        self.items: deque[Any] = deque()
        self.started = math.inf
        """When, on the monotonic clock, it could begin with what it must answer next."""
        # Forked: it starts in milliseconds, and shared memory needs no name in /dev/shm, which
        # containers keep small.
        context = multiprocessing.get_context("fork")
        self.pipe, remote = context.Pipe()
        self.process = context.Process(
            target=_begin, args=(serve, function, remote, os.getpid()), daemon=True
        )
        with _undisturbed():
            self.process.start()
        remote.close()

    def alive(self) -> bool:
        """Ask before ``receive``: what it sent before it died counts."""
        return self.process.is_alive()

    def send(self, item: Any) -> None:
        """Put an item into its hands."""
        if not self.items:
            self.started = time.monotonic()
        self.items.append(item)
        with contextlib.suppress(OSError):  # it just died; the reader finds out
            self.pipe.send(item)

    def receive(self) -> Answer | None:
        """Its next answer; None where there is none yet, or none will come as it is dead."""
        try:
            if not self.pipe.poll():
                return None
            answer = self.pipe.recv()
        except (EOFError, OSError):  # it died, maybe in the middle of an answer
            return None
        self.started = time.monotonic()
        return answer

    def cause_of_death(self) -> Lost:
        """What to say of the item that the dead process worked on."""
        code = self.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit {code}"
        return Lost(f"the process reading it died ({how})")

    def overdue(self, timeout: float | None) -> Lost | None:
        """Why this process must be replaced although it lives, or None."""
        if timeout is not None and self.items and time.monotonic() - self.started > timeout:
            return Lost(f"took longer than {timeout:g} s", died=False)
        return None

    def end(self) -> None:
        """Kill the process, also in the middle of an item."""
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


def _begin(serve: Serve, function: Callable[..., Any], pipe: Connection, parent: int) -> None:
    """The new process: settle in, then serve."""
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
    serve(function, pipe)


def _leave_with(parent: int) -> None:
    """End this process soon after its parent has ended, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK)
    os._exit(1)
