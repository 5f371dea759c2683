"""Speed, utilisation, data wait and memory of a training loop."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator

import torch

from tats_fast.engine.distributed import World
from tats_fast.engine.exchange import ExchangeWait
from tats_fast.engine.peak import peak_tflops


class Meter:
    """Clocks between two reports. Host clocks: a GPU's queue drains at the report's own sync."""

    def __init__(self, world: World, bf16: bool, exchange: ExchangeWait | None = None) -> None:
        self._world = world
        self._exchange = exchange
        self._peak = peak_tflops(world.device, "bf16" if bf16 else "fp32")
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

    def watch(self, step_is_logged: bool) -> None:
        """Before a step: whether to see how long its exchange takes."""
        if self._exchange is not None:
            self._exchange.armed = step_is_logged

    def report(self, clips: int, flop_per_clip: float, steps: int = 1) -> dict[str, float]:
        """Metrics since the last report (docs/metrics.md); MFU is NaN where no data sheet tells
        the device's peak.

        Args:
            clips: trained on since then, over all processes.
            flop_per_clip: model FLOP, forward and backward.
            steps: of training since then.
        """
        elapsed = max(1e-9, time.perf_counter() - self._began - self._paused)
        tflops = clips * flop_per_clip / elapsed / self._world.size / 1e12
        row = {
            "clips_per_s": clips / elapsed,
            "data_wait_frac": self._waited / elapsed,
            "tflops": tflops,
            "mfu": math.nan if self._peak is None else tflops / self._peak,
            "peak_mem_mb": peak_memory_mb(self._world.device),
        }
        if self._exchange is not None:
            row["exchange_wait_frac"] = self._exchange.seconds() * steps / elapsed
            row["busy_s"] = (1 - row["exchange_wait_frac"]) * elapsed / steps
        if self._world.device.type == "cuda":
            row["reserved_mem_mb"] = torch.cuda.max_memory_reserved(self._world.device) / 2**20
        self._reset()
        return row


def peak_memory_mb(device: torch.device) -> float:
    """Peak of tensors allocated on a GPU, or of the process's resident memory, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
