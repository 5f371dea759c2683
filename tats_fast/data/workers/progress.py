"""How far a job or a run is: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

# Seconds between two plain lines, also of what is only to show that it lives, and between two
# refreshes of the bar.
_LINE_EVERY, _SPARSE_EVERY = 5.0, 30.0
_BAR_EVERY = 0.1
# Columns of a terminal that has room for a bar beside the numbers.
_BAR_FROM = 110


class Progress:
    """What is done of a total, what else there is to say, and when the rest will be done.

    Args:
        total: of what is counted.
        before: of it, done before this run.
        title: what is counted, in the plural; shown beside the bar.
        stream: where to; none = stdout.
        own_thread: refresh the bar in a thread of its own, rather than with updates only. Not where
            processes are forked meanwhile: a fork inherits the locks that a thread holds.
    """

    def __init__(
        self,
        total: int,
        before: int,
        title: str = "",
        own_thread: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.total, self.before = total, before
        self.began = time.monotonic()
        self.bar = None
        if not self.stream.isatty():
            return
        from rich import console, progress

        terminal = console.Console(file=self.stream)
        self.bar = progress.Progress(
            *([progress.TextColumn(title)] if title else []),
            *([progress.BarColumn(20)] if terminal.width >= _BAR_FROM else []),
            progress.MofNCompleteColumn(),
            progress.TextColumn("ETA"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}"),
            auto_refresh=own_thread,
            console=terminal,
        )
        self.bar.start()
        self._task = self.bar.add_task("starting", total=total, completed=before)
        self.bar.refresh()

    def show(self, done: int, count: str, notes: str) -> None:
        """Say how much is done: on a plain line as ``count``, then ``notes``."""
        if self.bar is not None:
            refresh = not self.bar.live.auto_refresh
            self.bar.update(self._task, completed=done, description=notes, refresh=refresh)
            return
        seconds = (time.monotonic() - self.began) / max(1, done - self.before)
        line = f"{count}  {notes}  ETA {clock(seconds * (self.total - done))}"
        print(line, file=self.stream, flush=True)

    def message(self, text: str) -> None:
        """A line of its own."""
        if self.bar is None:
            print(text, file=self.stream)
        else:
            self.bar.console.print(text)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.stop()


class JobProgress(Progress):
    """Counts finished items, which are called ``title``; a context manager.

    Args:
        done: items finished before this run.
        failed: of those, the failed ones.
        sparse: a sign of life on stderr, for a command whose result is on stdout: without a
            terminal a line every 30 s, and nothing of what ends sooner.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, failed: int = 0, sparse: bool = False
    ) -> None:
        if done and not sparse:
            print(f"{done} of {total} {title} are done already", flush=True)
        super().__init__(total, done, title, stream=sys.stderr if sparse else None)
        self._every = _BAR_EVERY if self.bar else _SPARSE_EVERY if sparse else _LINE_EVERY
        self._sparse = sparse
        self._title, self._done, self._failed = title, done, failed
        self._shown, self._refreshed = done, self.began

    def __enter__(self) -> JobProgress:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.bar is not None or (self._done > self._shown and not self._sparse):
            self._show()
        self.close()

    def step(self, failed: bool = False) -> None:
        """One more item is finished."""
        self.at(self._done + 1, self._failed + failed)

    def at(self, done: int, failed: int = 0) -> None:
        """So many are finished, and so many of them failed."""
        self._done, self._failed = done, failed
        if time.monotonic() - self._refreshed >= self._every:
            self._show()

    def _show(self) -> None:
        self._shown, self._refreshed = self._done, time.monotonic()
        rate = (self._done - self.before) / max(1e-9, self._refreshed - self.began)
        notes = f"{rate:.1f}/s" + (f"  {self._failed} failed" if self._failed else "")
        self.show(self._done, f"{self._done}/{self.total} {self._title}", notes)


def clock(seconds: float) -> str:
    """``1:02:03`` of 3723 seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
