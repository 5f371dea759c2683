"""Timing on the device's own clock. On the CPU both functions are ``bench.interleaved_ms``.

Single ops on a GPU: before each call a buffer larger than the second-level cache is written, so
that inputs come from memory as in a training step, and the device sleeps a moment, so that the host
has queued the call's kernels when the clock starts. Whole steps on a GPU: in bursts without waiting
for the device, as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from parts import bench
from tats_fast.data.workers.progress import JobProgress

FLUSH_BYTES = 2**28
BURST = 4
HEAD_START_CYCLES = 1_500_000


def interleaved_ms(
    calls: dict[str, Callable[[], Any]], device: torch.device, repeats: int, warmup: int
) -> dict[str, list[float]]:
    """Times in ms of every call, taken A B C A B C ...; see the module."""
    if device.type != "cuda":
        return bench.interleaved_ms(calls, device, repeats, warmup)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with JobProgress("rounds", warmup + repeats, sparse=True) as progress:
        for round_ in range(warmup + repeats):
            for name, call in calls.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                flush.zero_()
                torch.cuda._sleep(HEAD_START_CYCLES)
                start.record()
                call()
                end.record()
                torch.cuda.synchronize(device)
                if round_ >= warmup:
                    times[name].append(start.elapsed_time(end))
            progress.step()
    return times


def steps_ms(
    calls: dict[str, Callable[[], Any]], device: torch.device, repeats: int, warmup: int
) -> dict[str, list[float]]:
    """Times in ms of ``repeats`` steps of every call, in bursts A A A B B B ... A A A ...

    A burst's first step starts on an idle device and is not counted; each of the others takes from
    the end of the one before to its own end. ``warmup`` counts steps too.
    """
    if device.type != "cuda":
        return bench.interleaved_ms(calls, device, repeats, warmup)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    with JobProgress("steps of each", repeats, sparse=True) as progress:
        while (done := min(map(len, times.values()))) < repeats:
            progress.at(done)
            for name, call in calls.items():
                ends = []
                for _ in range(1 + min(BURST, repeats - len(times[name]))):
                    call()
                    ends.append(torch.cuda.Event(enable_timing=True))
                    ends[-1].record()
                torch.cuda.synchronize(device)
                times[name] += [before.elapsed_time(after) for before, after in pairwise(ends)]
        progress.at(repeats)
    return times
