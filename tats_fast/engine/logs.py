"""Where a run's numbers go: metrics.jsonl, eval.jsonl, boards (TensorBoard), the terminal."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tats_fast.data.files import LineFile
from tats_fast.data.workers.progress import Progress
from tats_fast.engine.boards import Board, reason_of
from tats_fast.run_folder import read_rows

LOGGER = logging.getLogger("tats_fast")
LINES = ("metrics.jsonl", "eval.jsonl")
"""Files with a line per step, which a run that resumes cuts to its checkpoint."""
UNEVEN = 0.2
"""Share of a step by which processes must wait differently before the progress line says so."""


class RunLog:
    """Writes one line of numbers per logged step; silent on processes other than the first.

    Args:
        folder: the run's folder.
        resumed_step: lines of later steps are dropped: the run is about to produce them again.
            -1 = all of them.
        total_steps: for the progress display.
        columns: metrics of the progress line, each with a label and a format.
        boards: where numbers and pictures go besides.
    """

    def __init__(
        self,
        folder: Path,
        resumed_step: int,
        total_steps: int,
        columns: Sequence[tuple[str, str, str]],
        boards: Sequence[Board] = (),
    ) -> None:
        self.folder = folder
        # The last step of each file's lines; what runs again until then was logged before, unless
        # the run starts afresh, at the services too.
        fresh = resumed_step < 0
        self._logged = {name: -1 if fresh else _last_step(folder / name) for name in LINES}
        for name in LINES:
            drop_lines_after(folder / name, resumed_step)
        self._files = {name: LineFile(folder / name) for name in LINES}
        self._boards = list(boards)
        self._progress = Progress(total_steps, max(0, resumed_step), own_thread=True)
        self._columns = columns
        self.numbers = ""
        """Those of the last line."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Append to metrics.jsonl and the boards, refresh the progress display."""
        self._write("metrics.jsonl", row, prefix="train")
        speed = row["clips_per_s"]
        notes = [f"{speed:.{0 if speed >= 100 else 1}f} clips/s"]
        for name, label, form in self._columns:
            value = row.get(name)
            notes.append(f"{label} -" if value is None else f"{label} {value:{form}}")
        waits = [row.get(f"exchange_wait_frac_{end}") for end in ("min", "max")]
        if None not in waits and waits[1] - waits[0] > UNEVEN:
            notes.append(f"rank {row['slowest_rank']} holds the others up")
        count = f"step {row['step']}/{self._progress.total}"
        self.numbers = "  ".join(notes)
        self._say(lambda: self._progress.show(row["step"], count, self.numbers))

    def evaluation(self, row: dict[str, Any], text: str) -> None:
        """Append to eval.jsonl and the boards, and say it in words."""
        self._write("eval.jsonl", row, prefix="eval")
        self.message(text)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A uint8 (H, W, 3) picture for the boards."""
        self._tell(lambda board: board.image(name, picture, step), step <= self._logged[LINES[0]])

    def message(self, text: str) -> None:
        """A line for the person watching."""
        self._say(lambda: self._progress.message(text))

    def close(self) -> None:
        """Flush and stop the progress display."""
        self._say(self._progress.close)
        self._tell(lambda board: board.close())

    @staticmethod
    def _say(show: Callable[[], None]) -> None:
        """Training goes on, and saves, when nobody reads any more what it prints: where a launcher
        is gone that had logged in to this host, or the other end of a pipe."""
        try:
            show()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError:  # a file on a full disk: the next line may have room
            pass

    def _write(self, file: str, row: dict[str, Any], prefix: str) -> None:
        # NaN is not JSON: a number that does not exist is null.
        clean = {k: None if _is_nan(v) else v for k, v in row.items()}
        self._files[file].append([json.dumps(clean)])
        numbers = {
            f"{prefix}/{name}": value
            for name, value in clean.items()
            if isinstance(value, int | float) and name != "step"
        }
        step = row["step"]
        self._tell(lambda board: board.scalars(numbers, step), step <= self._logged[file])

    def _tell(self, work: Callable[[Board], None], again: bool = False) -> None:
        """All boards; one that fails, as a service does that is away, is done without from here.

        Args:
            again: the step was logged before a kill; boards that cannot take it back have it.
        """
        for board in list(self._boards):
            if again and not board.purges:
                continue
            try:
                work(board)
            except Exception as error:
                self._boards.remove(board)
                name, reason = type(board).__name__, reason_of(error)
                LOGGER.warning("%s gets no more numbers (train.loggers): %s", name, reason)


class SilentLog:
    """The same calls, for processes other than the first."""

    numbers = ""

    def metrics(self, row: dict[str, Any]) -> None: ...

    def evaluation(self, row: dict[str, Any], text: str) -> None: ...

    def image(self, name: str, picture: np.ndarray, step: int) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


def drop_lines_after(path: Path, step: int, into: Path | None = None) -> int:
    """Keep the lines up to ``step``; a last line cut off by a kill goes too.

    Args:
        into: file that the dropped lines are added to; None = they are to be made again.

    Returns:
        The number of whole lines dropped.
    """
    if not path.exists():
        return 0
    lines, dropped = [], []
    for line in path.read_text().splitlines():
        try:
            (lines if json.loads(line)["step"] <= step else dropped).append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    if into is not None and dropped:
        into.parent.mkdir(exist_ok=True)
        with into.open("a") as file:
            file.writelines(dropped)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(lines))
    os.replace(temporary, path)
    return len(dropped)


def _last_step(path: Path) -> int:
    """Of the lines in a file; -1 without any."""
    return max((row["step"] for row in read_rows(path)), default=-1)


def recorded(folder: Path, step: int) -> set[str]:
    """Keys of the lines of ``eval.jsonl`` in ``folder`` at this step."""
    rows = (row for row in read_rows(folder / "eval.jsonl", step) if row["step"] == step)
    return set().union(*rows)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
