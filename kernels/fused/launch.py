"""What every Triton kernel shares: starting it, its configurations, and the dtypes it takes.

All kernels start through ``launch``. Inside ``intercepting`` no GPU is asked: the calls, with the
very arguments it would get, go to who wants them, to be compiled for chips that are not there
(``benchmarks/kernel_resources.py``, the compile tier of the tests) or executed on the host (the
machine tier).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ARCHITECTURES = {80: 163, 89: 99, 90: 227, 100: 227}
"""Chips with configurations of their own, as 10 * major + minor of the compute capability, and the
shared memory in KiB that one block may use (CUDA programming guide, technical specifications)."""


@dataclass(frozen=True)
class Config:
    """One way to run a kernel: compile-time sizes, warps per program, software-pipelining depth."""

    sizes: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={value}" for name, value in self.sizes.items())
        return f"{sizes} warps={self.num_warps} stages={self.num_stages}"


@dataclass(frozen=True)
class Tunable:
    """A kernel's candidate configurations and which of them each chip runs.

    The choice is a table, not a measurement at run time: two runs, or a run and its resumption,
    add up in the same order and so agree bit for bit. ``benchmarks/gpu_suite.py`` times all
    candidates and names the fastest.
    """

    name: str
    candidates: tuple[Config, ...]
    chosen: Mapping[int, int]
    """Architecture (of ``ARCHITECTURES``) to index into ``candidates``; 0 = any other chip."""

    def config(self, device: torch.device) -> Config:
        """The configuration to run on ``device``."""
        if self.name in _forced:
            return _forced[self.name]
        arch = architecture(device)
        return self.candidates[self.chosen.get(arch, self.chosen[0])]


class Launch(NamedTuple):
    """One recorded start: ``arguments`` by parameter name, compile-time ones included."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int


_interceptors: list[tuple[int, Callable[[Launch], object]]] = []
_forced: dict[str, Config] = {}


def launch(
    kernel: Any, grid: tuple[int, ...], config: Config, *args: Any, **constants: Any
) -> None:
    """Start ``kernel`` on ``grid`` with run-time ``args`` in order and compile-time ``constants``;
    ``config.sizes`` are compile-time arguments too."""
    constants = {**config.sizes, **constants}
    if _interceptors:
        names = dict(zip(kernel.arg_names, args, strict=False))
        started = Launch(kernel, grid, {**names, **constants}, config.num_warps, config.num_stages)
        _interceptors[-1][1](started)
        return
    device = next(arg for arg in args if isinstance(arg, Tensor)).device
    with torch.cuda.device(device.index if device.type == "cuda" else -1):  # -1 changes nothing
        kernel[grid](*args, **constants, num_warps=config.num_warps, num_stages=config.num_stages)


@contextmanager
def intercepting(arch: int, receive: Callable[[Launch], object]) -> Iterator[None]:
    """Hand launches to ``receive`` instead of making them, as if on a chip of architecture
    ``arch``."""
    _interceptors.append((arch, receive))
    try:
        yield
    finally:
        _interceptors.pop()


@contextmanager
def recording(arch: int) -> Iterator[list[Launch]]:
    """Collect launches instead of making them; ops called inside return what is not computed."""
    started: list[Launch] = []
    with intercepting(arch, started.append):
        yield started


@contextmanager
def forced(name: str, config: Config) -> Iterator[None]:
    """Run the tunable kernel ``name`` with ``config``, for tests and tuning."""
    _forced[name] = config
    try:
        yield
    finally:
        del _forced[name]


def architecture(device: torch.device) -> int:
    """10 * major + minor of the chip; 0 for the interpreter on CPU tensors."""
    if _interceptors:
        return _interceptors[-1][0]
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def dot_precision(dtype: torch.dtype) -> str:
    """Precision of ``tl.dot`` on fp32 blocks: TF32 where the user allowed it to PyTorch too."""
    allowed = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


def supported(*tensors: Tensor | None) -> bool:
    """Whether all tensors have a dtype the kernels take (fp64 goes to the composed ops)."""
    return all(t is None or t.dtype in DTYPES for t in tensors)


def power_of_2(value: int, least: int = 1) -> int:
    """The next power of two, at least ``least``."""
    return max(least, triton.next_power_of_2(value))


def with_unit_stride(x: Tensor) -> Tensor:
    """``x``, copied only if its last dimension has gaps: kernels take all other strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def load_block(p_block, m_block, MASKED: tl.constexpr):
    """Values at the pointers; if MASKED, zeros where the mask is not set."""
    return tl.load(p_block, mask=m_block, other=0.0) if MASKED else tl.load(p_block)
