"""Numbers that are not finite: steps left out because of them, weights that must not be saved."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tats_fast.config import Failure
from tats_fast.data.files import LineFile
from tats_fast.run_folder import list_checkpoints

LOGGER = logging.getLogger("tats_fast")
_REMEDY = "lower optim.base_lr or set optim.grad_clip=1"


class NonFiniteLoss(Failure):
    """``train.max_skipped`` steps in a row, or the last ones, had a loss or gradient that is not a
    number; or a weight is not."""


@dataclass
class SkippedSteps:
    """Steps without an update, because a loss or gradient was not finite."""

    run_dir: Path
    limit: int
    """``train.max_skipped``."""
    writes: bool
    """Whether this process keeps ``skipped_steps.jsonl``."""
    in_row: int = 0
    """Of the last steps noted."""

    def __post_init__(self) -> None:
        self._file = LineFile(self.run_dir / "skipped_steps.jsonl")

    def note(self, first: int, skipped: Sequence[bool], clips: Sequence[list[Any]]) -> None:
        """Steps ``first``, ``first + 1``, ...: whether each was skipped, and its clips.

        Raises:
            NonFiniteLoss: the limit is reached.
        """
        for step, (flag, names) in enumerate(zip(skipped, clips, strict=True), start=first):
            self.in_row = self.in_row + 1 if flag else 0
            if not flag:
                continue
            LOGGER.warning("step %d skipped: its loss or gradient is not finite", step)
            if self.writes:
                self._file.append([json.dumps({"step": step, "clips": names})])
            if self.in_row >= self.limit:
                raise self.failure(step)

    def failure(self, step: int) -> NonFiniteLoss:
        """What to raise where the last ``in_row`` steps, to ``step``, were skipped."""
        return NonFiniteLoss(
            f"loss or gradient was not finite for {self.in_row} steps in a row (to step {step}); "
            f"{kept(self.run_dir)}; {_REMEDY}"
        )


def require_finite(run_dir: Path, step: int, state: Mapping[str, Any]) -> None:
    """Check all weights with one wait for the device.

    Args:
        state: nested dictionaries of tensors.

    Raises:
        NonFiniteLoss: one is not finite; one line that names it.
    """
    named = dict(_floats(state))
    if not named:
        return
    # A fifth of the time of isfinite() on a CPU: one pass, and no copy. NaN is an extreme, too.
    extremes = torch.stack([torch.stack(value.aminmax()) for value in named.values()])
    for name, good in zip(named, extremes.isfinite().all(dim=1).tolist(), strict=True):
        if not good:
            raise NonFiniteLoss(
                f"step {step} is not saved: {name} holds a number that is not finite; "
                f"{kept(run_dir)}; {_REMEDY}"
            )


def kept(run_dir: Path) -> str:
    """A clause on the newest checkpoint of the run, if it has one."""
    existing = list_checkpoints(run_dir)
    if not existing:
        return f"no checkpoint was written to {run_dir}"
    return f"the last good checkpoint is {existing[-1]}"


def _floats(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _floats(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            yield prefix + name, value
