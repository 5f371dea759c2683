"""How far a job is: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

# Seconds between two plain lines, and between two refreshes of the bar.
_LINE_EVERY = 5.0
_BAR_EVERY = 0.1


class JobProgress:
    """Counts finished items; a context manager.

    title: what is counted, in the plural. total: items in all. done, failed: of them, finished and
    failed before this run.
    """

    def __init__(self, title: str, total: int, done: int = 0, failed: int = 0) -> None:
        self._title, self._total = title, total
        self._before, self._done, self._failed = done, done, failed
        self._lined = done
        self._began = self._shown = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> JobProgress:
        if self._before:
            print(f"{self._before} of {self._total} {self._title} are done already", flush=True)
        if sys.stdout.isatty():
            self._bar, self._task = _rich_bar(self._title, self._total, self._before)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=self._notes())
            self._bar.stop()
        elif self._done > self._lined:
            self._line()

    def step(self, failed: bool = False) -> None:
        """One more item is finished."""
        self._done += 1
        self._failed += failed
        now = time.monotonic()
        if now - self._shown < (_LINE_EVERY if self._bar is None else _BAR_EVERY):
            return
        self._shown = now
        if self._bar is None:
            self._line()
        else:
            notes = self._notes()
            self._bar.update(self._task, completed=self._done, description=notes, refresh=True)

    def _line(self) -> None:
        self._lined = self._done
        print(
            f"{self._done}/{self._total} {self._title}  {self._notes()}  ETA {self._eta()}",
            flush=True,
        )

    def _rate(self) -> float:
        """Items per second of this run."""
        return (self._done - self._before) / max(1e-9, time.monotonic() - self._began)

    def _notes(self) -> str:
        return f"{self._rate():.1f}/s" + (f"  {self._failed} failed" if self._failed else "")

    def _eta(self) -> str:
        seconds = round((self._total - self._done) / max(1e-9, self._rate()))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _rich_bar(title: str, total: int, done: int) -> tuple[Any, Any]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn(title),
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        # No thread of its own: worker processes are forked while the bar is shown, and a fork
        # inherits the locks that a thread holds.
        auto_refresh=False,
    )
    bar.start()
    task = bar.add_task("starting", total=total, completed=done)
    bar.refresh()
    return bar, task
