"""What a run says at its start and end, for the person at the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tats_fast.engine.best import best_checkpoint
from tats_fast.run_folder import list_checkpoints

_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def duration(seconds: float) -> str:
    """``4 minutes`` of 250 seconds: whole units of the largest that is not zero."""
    for name, unit in _UNITS:
        if seconds >= unit or unit == 1:
            count = int(seconds // unit)
            return f"{count} {name}{'' if count == 1 else 's'}"
    raise AssertionError(seconds)


def continuing(checkpoint: Path, step: int, total: int) -> str:
    """From where a run goes on, and how old that is."""
    age = max(0.0, time.time() - checkpoint.stat().st_mtime)
    return f"continuing from step {step} of {total}, saved {duration(age)} ago ({checkpoint})"


def ended(run: Path, step: int, numbers: str, next_commands: Sequence[str]) -> str:
    """The end of a run: its checkpoint, its last numbers, and what to do with it.

    Args:
        next_commands: with ``{run}`` for the run's folder.
    """
    checkpoint, best = list_checkpoints(run)[-1], best_checkpoint(run)
    if best is not None and best.checkpoint != checkpoint:
        numbers += f"\n  best evaluation: {best.measure} {best.value:.4g}, {best.checkpoint}"
    commands = [f"  {command.format(run=run)}" for command in next_commands]
    return "\n".join([f"trained to step {step}: {checkpoint}", f"  {numbers}", "next:", *commands])
