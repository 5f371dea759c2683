"""Processes of their own for what may break the GPU's context: a CUDA error in one ends only it."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CUDA_ERRORS = (
    *("CUDA error", "illegal memory access", "device-side assert", "misaligned address"),
    *("unspecified launch failure", "illegal instruction"),
)
"""After one of these nothing else can run on the GPU in the same process."""
HERE = Path(__file__).resolve().parent.parent
POLL = 0.3
"""Seconds between two looks at a process."""


def is_cuda_error(error: object) -> bool:
    """Whether this exception, or text, says that the process has lost its CUDA context."""
    return any(sign in str(error) for sign in CUDA_ERRORS)


def run_child(
    script: str,
    arguments: list[str],
    limit: float | None = None,
    progress: Callable[[], bool] = lambda: False,
) -> str | None:
    """Run a script of benchmarks/ to its end; its output goes on to ours.

    Args:
        limit: seconds, after which it is killed; None = no limit.
        progress: asked again and again; from each time it says so, ``limit`` counts anew.

    Returns:
        None where it succeeded, else the line that says why not.
    """
    with tempfile.TemporaryFile() as stderr:
        command = [sys.executable, str(HERE / script), *arguments]
        with subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL) as process:
            try:
                code = _watched(process, limit, progress)
            finally:
                process.kill()  # does nothing to one that has ended
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
    sys.stderr.write(text)
    sys.stderr.flush()
    if code is None:
        return f"ended after {limit:.0f} s"
    return (first_failure(text) or f"exit code {code}") if code else None


def _watched(
    process: subprocess.Popen, limit: float | None, progress: Callable[[], bool]
) -> int | None:
    """The exit code; None where the limit passed without progress."""
    since = time.monotonic()
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            if progress():
                since = time.monotonic()
            elif limit is not None and time.monotonic() - since > limit:
                return None


def first_failure(text: str) -> str | None:
    """What went wrong according to a process's error output, at most 160 characters: its first
    CUDA error, else the last line that names an error."""
    lines = [line.strip() for line in text.splitlines()]
    lost = (line for line in lines if is_cuda_error(line))
    named = (
        line for line in reversed(lines) if re.match(r"error: |[\w.]+(Error|Exception)\b", line)
    )
    line = next(lost, None) or next(named, None) or next(filter(None, reversed(lines)), None)
    return None if line is None else line.removeprefix("error: ")[:160]
