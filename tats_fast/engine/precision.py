"""Which precision a run computes in."""

from __future__ import annotations

import torch


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """bf16 autocast on ``device``, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Whether ``train.precision`` means bf16 autocast on this device."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")
