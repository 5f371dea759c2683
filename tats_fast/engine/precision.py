"""Which precision a run computes in."""

from __future__ import annotations

import torch


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """bf16 autocast on ``device``, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Whether ``train.precision`` means bf16 autocast on this device."""
    fast = device.type == "cuda" or cpu_multiplies_bf16()
    return precision == "bf16" or (precision == "auto" and fast)


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bf16 (AVX-512 BF16 or AMX: Intel from
    Cooper Lake, AMD from Zen 4); False where PyTorch cannot tell. Elsewhere it would emulate them,
    slower than fp32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
