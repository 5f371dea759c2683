"""Peak memory of a call, in bytes over the level at rest.

GPU: allocated tensors. CPU: resident memory, whose high-water mark Linux resets on request
(proc(5), /proc/pid/clear_refs); pages the allocator kept may hide a megabyte or two.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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
