"""Speed, data wait and memory of a training loop."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch


class Meter:
    """Clocks between two reports. Host clocks: a GPU's queue drains at the report's own sync."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._began = time.perf_counter()
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around fetching a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around work that is not training."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def report(self, steps: int, batch_size: int) -> dict[str, float]:
        """``clips_per_s`` over all processes, ``data_wait_frac``, ``peak_mem_mb`` of this one."""
        elapsed = max(1e-9, time.perf_counter() - self._began - self._paused)
        row = {
            "clips_per_s": steps * batch_size / elapsed,
            "data_wait_frac": self._waited / elapsed,
            "peak_mem_mb": peak_memory_mb(self._device),
        }
        self._reset()
        return row


def peak_memory_mb(device: torch.device) -> float:
    """Peak of tensors allocated on a GPU, or of the process's resident memory, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
