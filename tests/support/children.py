"""Processes that die, hang or outlive their parent, for the tests of worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from project import ROOT


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether the process ends in time; one that nobody has reaped yet has ended too."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def pids_then_much(item):
    yield os.getpid()
    while True:
        yield np.zeros(1_000_000, np.uint8)


def left_behind(code: str) -> list[int]:
    """Process ids that ``code`` prints on one line and that outlive it for long after it is killed.

    They are ended here.
    """
    command = [
        sys.executable,
        "-c",
        "import os, signal, sys; sys.path.insert(0, 'tests/support')\n" + code,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert parent.returncode == -signal.SIGKILL and pids
    left = [pid for pid in pids if not gone(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def much_or_nothing(item):
    if item == "hang":
        time.sleep(60)
    return bytes(1_000_000)  # does not fit in the pipe


def heed_interrupts() -> None:
    """For a child's start: also where the tests run in the background of a shell, which ignores
    interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
