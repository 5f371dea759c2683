"""What a device can do at most: measured on the spot; of chips that are not here, from tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from parts.bench import synchronize
from parts.costs import Ceilings
from tats_fast.engine.peak import PEAK_TFLOPS, chip_name

MEASURED_TFLOPS = {"H200": {"bf16": 790.0, "fp16": 790.0}}
"""An 8192 x 8192 x 8192 product of random numbers."""
BANDWIDTH = {
    "H200": (4.3e12, "measured copy"),
    "H100": (3.35e12, "data sheet"),
    "A100": (2.04e12, "data sheet, 80 GB"),
}
DATA_SHEET_BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.04e12}
SECONDS = 1.5
GPU_SECONDS = 0.3
"""A GPU of one's own needs no quiet moment."""
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def tabled(chip: str, precision: str) -> Ceilings:
    """Ceilings of a chip that need not be here."""
    bandwidth, source = BANDWIDTH[chip]
    measured = MEASURED_TFLOPS.get(chip, {}).get(precision)
    rate = PEAK_TFLOPS[chip][precision] if measured is None else measured
    kind = "data sheet" if measured is None else "measured product"
    return Ceilings(bandwidth, rate * 1e12, f"{chip}: {source}, {kind}")


@cache
def here(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Ceilings of the GPU that is here, measured once per process and never a data sheet's."""
    top = measure(device, dtype, GPU_SECONDS)
    torch.cuda.empty_cache()
    return top


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Ceilings of the device that is here, measured on the spot: on the CPU anew at each call."""
    return here(device, dtype) if device.type == "cuda" else measure(device, dtype)


def data_sheet(device: torch.device, dtype: torch.dtype) -> Ceilings | None:
    """What NVIDIA says about the GPU that is here, to print beside; None if unknown."""
    chip = chip_name(device)
    if chip is None:
        return None
    rate = PEAK_TFLOPS[chip][NAMES[dtype]] * 1e12
    return Ceilings(DATA_SHEET_BANDWIDTH[chip], rate, f"{chip}: data sheet")


def better(one: Ceilings, other: Ceilings) -> Ceilings:
    """The higher of each: what others run on a shared machine only ever lowers a measurement."""
    return Ceilings(max(one.bandwidth, other.bandwidth), max(one.rate, other.rate), one.source)


def measure(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS) -> Ceilings:
    """The best of a few large copies (bytes read plus bytes written) and of a few products of
    random numbers, within a few seconds: on a shared machine the longest quiet moment counts."""
    gpu = device.type == "cuda"
    source = torch.empty((8 if gpu else 1) * 2**27, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    side = 8192 if gpu else 2048 if dtype == torch.float32 else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    copy = _best(lambda: target.copy_(source), device, seconds)
    product = _best(lambda: left @ right, device, seconds)
    return Ceilings(
        2 * source.numel() / copy,
        2 * side**3 / product,
        f"measured here: copy of {source.numel() >> 20} MiB, product of side {side}",
    )


def _best(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Shortest run within ``seconds``, in seconds; at least eight runs."""
    times: list[float] = []
    while len(times) < 8 or sum(times) < seconds:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
