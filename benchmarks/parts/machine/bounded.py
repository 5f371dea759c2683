"""The kernels of an op at ViT-B, each with what it executes and how long that should take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

from torch import Tensor

from .bounds import CHIPS, Seconds, resident, seconds
from .compiling import compile_launch, registers_and_stack
from .count import Work, work
from .run import ARCHITECTURE, Executed, run


@dataclass(frozen=True)
class Bounded:
    """Of one kernel and configuration: programs on a multiprocessor, executed work per clip, and
    seconds per clip by chip."""

    launch: Any
    at_once: int
    work: Work
    seconds: dict[str, Seconds]


def bounded(launch_at: Callable[[int], Any], batch: int) -> Bounded:
    """Execute a launch for a few clips and say what it costs per clip of a batch.

    Args:
        launch_at: the launch for a number of clips; what its tensors hold does not matter.
        batch: clips of the batch that is predicted.
    """
    one, two = launch_at(1), launch_at(2)
    if prod(two.grid) == 2 * prod(one.grid):  # a clip's programs are its own
        programs, executed = prod(one.grid) * batch, _executed(one)
        tensors = zip(_tensors(one), _tensors(two), executed.touched, strict=True)
        once = sum(moved for a, b, moved in tensors if a.shape == b.shape)  # weights, positions
        total = _scaled(_work(one, executed), batch)
        total = replace(total, memory=total.memory - (batch - 1) * once)
    else:  # a fixed part and a part for each further clip
        three = launch_at(3)
        more = batch - 2
        programs = prod(two.grid) + more * (prod(three.grid) - prod(two.grid))
        total = _extended(*(_work(part, _executed(part)) for part in (two, three)), more)
    compiled, _ = compile_launch(one, ARCHITECTURE)
    registers, _ = registers_and_stack(compiled)
    at_once = resident(one.num_warps, registers, compiled.metadata.shared)
    per_clip = _scaled(total, 1 / batch)
    times = {name: seconds(per_clip, chip, programs, at_once) for name, chip in CHIPS.items()}
    return Bounded(one, at_once, per_clip, times)


def _executed(launch: Any) -> Executed:
    return run(launch, counting=True)


def _work(launch: Any, executed: Executed) -> Work:
    return work(executed, compile_launch(launch, ARCHITECTURE)[0])


def _tensors(launch: Any) -> list[Tensor]:
    return [x for x in compile_launch(launch, ARCHITECTURE)[1] if isinstance(x, Tensor)]


def _scaled(work: Work, factor: float) -> Work:
    return Work(*(factor * getattr(work, field.name) for field in fields(work)))


def _extended(two: Work, three: Work, more: int) -> Work:
    names = [field.name for field in fields(two)]
    pairs = ((getattr(two, name), getattr(three, name)) for name in names)
    return Work(*(a + more * (b - a) for a, b in pairs))
