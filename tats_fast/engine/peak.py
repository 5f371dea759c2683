"""How many FLOP per second a chip can do at most, by its data sheet, which MFU is relative to; and
how much memory it has."""

from __future__ import annotations

import torch

PEAK_TFLOPS = {
    "H200": {"bf16": 989.0, "fp16": 989.0, "fp32": 67.0},
    "H100": {"bf16": 989.0, "fp16": 989.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5},
}
"""Dense matrix rates in TFLOP/s from NVIDIA's data sheets (SXM parts, without sparsity); "fp32" is
without TF32."""

MEMORY_GIB = {"H200": 139.0, "H100": 79.2, "A100": 79.2}
"""What PyTorch sees of 141 and 80 GB; the H100's was read from one, the others are rounded down."""


def chip_name(device: torch.device) -> str | None:
    """The table's name of a GPU, such as H200; None for any other device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((chip for chip in PEAK_TFLOPS if chip in name), None)


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Dense matrix rate of this GPU at "bf16", "fp16" or "fp32", TFLOP/s; None = not known."""
    chip = chip_name(device)
    return None if chip is None else PEAK_TFLOPS[chip][precision]
