"""``--dry-run``: the first steps of a run that writes nothing, and what they say of the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tats_fast.config import Failure
from tats_fast.engine import run_lock
from tats_fast.engine.meter import peak_memory_mb
from tats_fast.engine.words import duration

if TYPE_CHECKING:
    from tats_fast.engine.loop import TrainingLoop

_STEPS = 2  # the first compiles and warms up, the second tells the time


def try_out(loop: TrainingLoop) -> list[str]:
    """Decode and train the next steps, which are forgotten; returns lines to print.

    All processes call it, on a loop made with ``writes=False``.

    Raises:
        Failure: the device's memory does not hold a step; one line.
    """
    left = loop.total_steps - loop.position.step
    try:
        if left == 0:
            return [*loop.describe(), f"already trained to step {loop.total_steps}"]
        seconds, bad = _steps(loop, min(_STEPS, left))
    except torch.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(loop.world.device).total_memory / 2**30
        raise Failure(
            f"train.batch_size={loop.config.train.batch_size}: a step does not fit in the GPU's "
            f"{total:.0f} GiB; train.accumulation=2 or train.recompute=true takes less"
        ) from error
    finally:
        run_lock.release(loop.folder)
    whole = sum(_bytes(loop.learner.model_state())) * 3  # weights and Adam's two moments
    train = loop.config.train
    kept = min(train.keep_checkpoints + train.keep_best, -(-left // train.checkpoint_every))
    free = shutil.disk_usage(_existing(loop.folder)).free
    return [
        *loop.describe(),
        f"a step takes {seconds:.2f} s here: {left} steps take about {duration(seconds * left)}, "
        f"evaluations apart; peak memory {peak_memory_mb(loop.world.device):.0f} MiB",
        f"checkpoints of about {whole / 1e6:.0f} MB, at most {kept} at a time; "
        f"{free / 1e9:.0f} GB of disk are free",
        *(f"cannot be decoded: {path} ({reason})" for path, reason in bad),
        "nothing was written; the same command without --dry-run trains",
    ]


def _steps(loop: TrainingLoop, count: int) -> tuple[float, list[tuple[str, str]]]:
    """Seconds of the last of so many steps; (path, reason) of files that cannot be decoded."""
    bad, seconds = [], 0.0
    with contextlib.closing(loop.loader()) as loader:
        batches = iter(loader)
        for _ in range(count):
            start = time.monotonic()
            micro_batches = [next(batches) for _ in range(loop.config.train.accumulation)]
            loop.train_step(micro_batches)["skipped"].item()  # waits for the device
            seconds = time.monotonic() - start
            bad += [entry for batch in micro_batches for entry in batch.bad]
            loop.position = dataclasses.replace(loop.position, step=loop.position.step + 1)
    return seconds, sorted(set(bad))


def _bytes(state: Any) -> Iterator[int]:
    if isinstance(state, torch.Tensor):
        yield state.numel() * state.element_size()
    elif isinstance(state, dict):
        for value in state.values():
            yield from _bytes(value)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())
