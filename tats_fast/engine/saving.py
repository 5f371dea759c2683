"""Checkpoints written beside the training: one thread, one at a time."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tats_fast.engine.checkpoint import Contents, NotSaved, write_checkpoint
from tats_fast.engine.finite import kept

LOGGER = logging.getLogger("tats_fast")


class Saving:
    """Writes the checkpoints of a run while it trains on; the first process alone does.

    Writing, hashing and flushing release Python's lock, so that the training keeps it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    def start(self, contents: Contents, source: Path | None, must: bool) -> None:
        """Begin writing, once what was begun before is done.

        Args:
            source: as ``write_checkpoint`` takes it.
            must: whether a disk that is full is an error, which ``wait`` raises as ``NotSaved``; a
                warning otherwise.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, contents, source, must)

    def wait(self) -> None:
        """Until nothing is being written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, contents: Contents, source: Path | None, must: bool) -> None:
        try:
            write_checkpoint(self._run_dir, contents, source)
        except NotSaved as error:
            problem = f"step {contents.position.step} could not be saved ({error})"
            if must:
                raise NotSaved(f"{problem}; {kept(self._run_dir)}") from error
            LOGGER.warning("%s; training goes on, and the next checkpoint is tried", problem)
