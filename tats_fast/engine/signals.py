"""When a run stops before its end: on signals, or when its launcher is gone. All processes agree on
the step after which they do."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tats_fast.engine.distributed import World

LOGGER = logging.getLogger("tats_fast")
ECHO = 1.0
"""Seconds after a first signal in which another is an echo: a launcher passes on the Ctrl-C that
the terminal has already sent to every process."""
_LOOK_EVERY = 0.5
_LAST_CALL = 600.0
"""Seconds from the launcher's end to that of a process that does not get to stop by itself."""


class Stopped(Exception):
    """A signal asked the run to end; the state is saved. ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopRequest:
    """Inside the ``with`` block a first SIGINT or SIGTERM is a request to finish the step and save.
    After it only SIGINT stops the process at once: launchers send SIGTERM several times."""

    def __init__(self, world: World) -> None:
        self.signum: int | None = None
        self._world = world
        self._since = 0.0
        # On the CPU, so that asking does not wait for the device.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> StopRequest:
        self._before = {
            signum: signal.signal(signum, self._on_signal)
            for signum in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def agreed(self) -> bool:
        """Whether all stop now. Every process asks after each step and hears the same.

        The answer is what they said one step before, which has long arrived: nobody waits, and a
        signal to one process is acted on by all at the end of the next step.
        """
        mine = self.signum is not None
        if self._group is None:
            return mine
        answer = False
        if self._asked is not None:
            work, flag = self._asked
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor(float(mine))
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = (work, flag)
        return answer

    def stopped(self) -> Stopped:
        """What to raise; where another process got the signal, as for SIGTERM."""
        return Stopped(self.signum or signal.SIGTERM)

    def _on_signal(self, signum: int, _frame: Any) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            LOGGER.warning(
                "%s: finishing the step and saving; Ctrl-C (SIGINT) stops at once from now on",
                signal.Signals(signum).name,
            )
        elif signum == signal.SIGINT and now - self._since > ECHO:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


def watch_launcher(by_deepspeed: bool) -> None:
    """End this process with the launcher that started it, as by SIGTERM: a step in progress is
    finished and saved. Without a launcher nothing is watched: a shell may end before its job.

    Args:
        by_deepspeed: the launcher is ``deepspeed``, of which two processes are above this one.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        above = _ancestors(1)
    elif by_deepspeed:
        above = _ancestors(2)
    else:
        return
    threading.Thread(target=_leave_with, args=(above,), daemon=True).start()


def _leave_with(above: list[int]) -> None:
    while _ancestors(len(above)) == above:
        time.sleep(_LOOK_EVERY)
    LOGGER.warning("the launcher is gone")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_CALL)
    os._exit(128 + signal.SIGTERM)


def _ancestors(count: int) -> list[int]:
    """Process ids of parent, grandparent and so on. The dead are replaced by whoever adopts."""
    pids = [os.getppid()]
    while len(pids) < count:
        try:
            status = Path(f"/proc/{pids[-1]}/stat").read_text()
            pids.append(int(status.rpartition(")")[2].split()[1]))
        except (OSError, ValueError, IndexError):  # not Linux, or it ended this instant
            pids.append(0)
    return pids
