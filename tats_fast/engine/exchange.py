"""How long a process waits for the exchange of gradients, and which process the others wait for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_SPREAD = ("exchange_wait_frac", "busy_s")


class ExchangeWait:
    """The end of a backward pass, from the moment its last gradient was there: exchange that no
    computation hides, waiting for slower processes included. Seen only in steps with ``armed``, and
    read without a wait of its own once the device has caught up.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.armed = False
        self._on_gpu = device.type == "cuda"
        self._marks: list[float] | list[torch.cuda.Event] = [math.nan, math.nan]
        if self._on_gpu:
            self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._seen = False
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._gradient)

    def _gradient(self, _parameter: Tensor) -> None:
        self._mark(0)

    def end(self) -> None:
        """The backward pass is over."""
        self._mark(1)
        self._seen = self.armed

    def seconds(self) -> float:
        """Of the last step seen, once; NaN without one."""
        if not self._seen:
            return math.nan
        self._seen = False
        first, last = self._marks
        if not self._on_gpu:
            return last - first
        last.synchronize()
        return first.elapsed_time(last) / 1000

    def _mark(self, which: int) -> None:
        if not self.armed:
            return
        if self._on_gpu:
            self._marks[which].record()
        else:
            self._marks[which] = time.perf_counter()


def across(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a logged line says of all processes (docs/metrics.md): the first one's own numbers, and
    where there are several, the least and most of all.

    Args:
        rows: what ``Meter.report`` gave on each, by rank.
    """
    own = {name: rows[0][name] for name in rows[0] if name not in _SPREAD}
    if len(rows) == 1:
        return own
    own["data_wait_frac_max"] = max(row["data_wait_frac"] for row in rows)
    own["peak_mem_mb_max"] = max(row["peak_mem_mb"] for row in rows)
    if any(math.isnan(row["busy_s"]) for row in rows):  # a line at a stop, whose step nobody saw
        return own
    for name in _SPREAD:
        values = [row[name] for row in rows]
        own |= {f"{name}_min": min(values), f"{name}_max": max(values)}
    busy = [row["busy_s"] for row in rows]
    return {**own, "slowest_rank": busy.index(max(busy))}
