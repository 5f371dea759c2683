"""Where a run's numbers go: metrics.jsonl, eval.jsonl, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LOGGER = logging.getLogger("tats_fast")


class RunLog:
    """Writes one line of numbers per logged step; silent on processes other than the first.

    Args:
        folder: the run's folder.
        resumed_step: lines of later steps are dropped: the run is about to produce them again.
        total_steps: for the progress display.
        shown: metrics that it shows, each with words and a format.
    """

    def __init__(
        self,
        folder: Path,
        resumed_step: int,
        total_steps: int,
        shown: Sequence[tuple[str, str, str]],
    ) -> None:
        self.folder = folder
        for name in ("metrics.jsonl", "eval.jsonl"):
            drop_lines_after(folder / name, resumed_step)
        self._board = _tensorboard(folder / "tensorboard", resumed_step)
        self._progress = _Progress(resumed_step, total_steps, shown)

    def metrics(self, row: dict[str, Any]) -> None:
        """Append to metrics.jsonl and TensorBoard, refresh the progress display."""
        self._write("metrics.jsonl", row, prefix="train")
        self._progress.show(row)

    def evaluation(self, row: dict[str, Any], text: str) -> None:
        """Append to eval.jsonl and TensorBoard, and say it in words."""
        self._write("eval.jsonl", row, prefix="eval")
        self.message(text)

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """A uint8 (H, W, 3) picture for TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def message(self, text: str) -> None:
        """A line for the person watching."""
        self._progress.message(text)

    def close(self) -> None:
        """Flush and stop the progress display."""
        self._progress.close()
        if self._board is not None:
            self._board.close()

    def _write(self, file: str, row: dict[str, Any], prefix: str) -> None:
        # NaN is not JSON: a number that does not exist is null.
        clean = {k: None if _is_nan(v) else v for k, v in row.items()}
        with (self.folder / file).open("a") as lines:
            lines.write(json.dumps(clean) + "\n")
        if self._board is not None:
            for name, value in clean.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(f"{prefix}/{name}", value, row["step"])


class SilentLog:
    """The same calls, for processes other than the first."""

    def metrics(self, row: dict[str, Any]) -> None: ...

    def evaluation(self, row: dict[str, Any], text: str) -> None: ...

    def image(self, name: str, picture: np.ndarray, step: int) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


def drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines up to ``step``; a last line cut off by a kill goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _tensorboard(folder: Path, resumed_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        LOGGER.warning("TensorBoard is not installed: numbers go to metrics.jsonl only")
        return None
    # purge_step hides what an interrupted run logged beyond the checkpoint.
    return SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else None)


class _Progress:
    """A live bar on a terminal, one plain line per logged step elsewhere."""

    def __init__(self, start: int, total: int, shown: Sequence[tuple[str, str, str]]) -> None:
        self._start, self._total, self._began = start, total, time.monotonic()
        self._shown = shown
        self._bar = self._task = None
        if sys.stdout.isatty():
            self._bar, self._task = _rich_bar(start, total)

    def show(self, row: dict[str, Any]) -> None:
        text = self._text(row)
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], description=text)
        else:
            print(
                f"step {row['step']}/{self._total}  {text}  ETA {self._eta(row['step'])}",
                flush=True,
            )

    def message(self, text: str) -> None:
        (self._bar.console.print if self._bar is not None else print)(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _text(self, row: dict[str, Any]) -> str:
        parts = [f"{row['clips_per_s']:.1f} clips/s"]
        for name, label, form in self._shown:
            value = row.get(name)
            parts.append(f"{label} -" if value is None else f"{label} {value:{form}}")
        return "  ".join(parts)

    def _eta(self, step: int) -> str:
        done = max(1, step - self._start)
        seconds = round((time.monotonic() - self._began) / done * (self._total - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _rich_bar(start: int, total: int) -> tuple[Any, Any]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        BarColumn(20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    bar.start()
    return bar, bar.add_task("starting", total=total, completed=start)
