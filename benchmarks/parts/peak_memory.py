"""Peak memory of a call, in bytes over the level at rest.

GPU: allocated tensors. CPU: resident memory, whose high-water mark Linux resets on request
(proc(5), /proc/pid/clear_refs); pages the allocator kept may hide a megabyte or two.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

MIB = 2**20


def peak_growth(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that ``call`` adds at its peak; None where that is not to be had."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        rest = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - rest
    rest = _reset_resident_peak()
    if rest is None:
        return None
    call()
    peak = _resident_bytes("VmHWM")
    return None if peak is None else max(0, peak - rest)


def state_bytes(modules: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> int:
    """Bytes of parameters, buffers and optimizer state."""
    tensors = [tensor for part in modules for tensor in (*part.parameters(), *part.buffers())]
    for optimizer in optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def peak_mb(
    step: Callable[[], Any],
    modules: Iterable[nn.Module],
    optimizers: Iterable[Optimizer],
    device: torch.device,
) -> float | None:
    """Peak memory of one step in MiB: its own state, and what the step adds to it.

    Several models live in the process, so the level at rest is subtracted and this one's state
    put back.
    """
    grown = peak_growth(step, device)
    return None if grown is None else (state_bytes(modules, optimizers) + grown) / MIB


def _reset_resident_peak() -> int | None:
    """Give freed memory back to the system and forget the old peak; the level at rest, bytes."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _resident_bytes("VmRSS")


def _resident_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)
