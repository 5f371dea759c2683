"""Run launches on the host: compiled for sm_90, translated, and executed on CPU tensors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tats_fast.kernels import dispatch

from .compiling import compile_launch
from .operations import OPERATIONS, c_functions
from .ptx import parse
from .translate import MACHINE, Program, translate

ARCHITECTURE = 90
FAULTS = ("", "outside of every tensor or of shared memory", "not aligned",
          "some threads of a warp do not take part", "a barrier that others never reach",
          "its operand is overwritten before it is waited for")  # fmt: skip
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno",
         "-fno-trapping-math", "-shared", "-fPIC")  # fmt: skip


class Fault(RuntimeError):
    """What a GPU would have died of, or hung, or computed nonsense from."""


class Executed(NamedTuple):
    """What a launch executed. ``counts`` has warps, lanes and units (``machine.h``) of each of the
    program's instructions; ``touched`` the bytes of the different sectors of each tensor that it
    read, plus those of the different ones that it wrote."""

    program: Program
    counts: np.ndarray
    touched: list[int]


class _Launch(ctypes.Structure):
    """``Launch`` of ``machine.h``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("words", "parameters", "fills", "ranges", "counts")),
        *((name, ctypes.c_int64) for name in ("n_fills", "n_ranges", "slots", "warps", "shared")),
        *((name, ctypes.c_int64) for name in ("late", "counting")),
        ("grid", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("fault", "word")),
        ("program", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("thread", "bytes")),
        ("address", ctypes.c_uint64),
    ]


def problem() -> str | None:
    """Why the machine cannot run here; None where it can."""
    if shutil.which("gcc") is None:
        return "needs gcc, version 12 or newer"
    return dispatch.triton_problem("cuda")


@lru_cache
def _library() -> ctypes.CDLL:
    """``machine.c`` with the operations, compiled for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        codes = ", ".join(f"OP_{x} = {len(OPERATIONS) + i}" for i, x in enumerate(MACHINE))
        Path(folder, "codes.h").write_text(f"enum {{ {codes} }};\n")
        Path(folder, "arithmetic.h").write_text(c_functions())
        library = Path(folder, "machine.so")
        source = Path(__file__).with_name("machine.c")
        subprocess.run(["gcc", *FLAGS, f"-I{folder}", "-o", library, source, "-lm"], check=True)
        return ctypes.CDLL(str(library))


program_of = lru_cache(maxsize=None)(lambda ptx: translate(parse(ptx)))
"""The program of a PTX file's text."""


def run(
    launch: Any, late: bool = False, counting: bool = False, change: Callable[[str], str] = str
) -> Executed:
    """Compile a ``launch.Launch`` and ``execute`` it on its CPU tensors; ``change`` is what to do
    to the PTX first, for tests that break it."""
    compiled, given = compile_launch(launch, ARCHITECTURE)
    return execute(
        change(compiled.asm["ptx"]), given, launch.grid, launch.num_warps,
        compiled.metadata.shared, late, counting,
    )  # fmt: skip


def execute(
    ptx: str,
    given: Sequence[Any],
    grid: Sequence[int],
    warps: int,
    shared: int = 0,
    late: bool = False,
    counting: bool = False,
) -> Executed:
    """Run a kernel's PTX.

    Args:
        given: its arguments, CPU tensors and numbers.
        shared: bytes of shared memory of a block.
        late: copies as late as their waits allow, warps from last to first; see ``machine.c``.
        counting: also count sectors and cycles of memory, which takes time.

    Returns:
        what it executed, whose ``units`` and bytes are zeros without ``counting``.

    Raises:
        Fault: an access out of bounds or out of line, or a barrier that some threads miss.
        Unknown: the machine does not know an instruction.
    """
    program = program_of(ptx)
    values = [_bits(value) & (2**64 - 1) for value in given]
    values += [0] * (len(program.parameters) - len(values))  # Triton's scratch memory, unused
    values = np.array(values, dtype=np.uint64)
    fills = np.array(program.fills, dtype=np.uint64).reshape(-1, 3)
    tensors = [_range(x) for x in given if isinstance(x, Tensor)]
    touched = [np.zeros((to - start) // 32 + 1, dtype=np.uint8) for start, to in tensors]
    marks = [x.ctypes.data if counting else 0 for x in touched]
    ranges = np.array([(*x, y) for x, y in zip(tensors, marks, strict=True)], dtype=np.uint64)
    counts = np.zeros((len(program.words), 3), dtype=np.int64)
    launch = _Launch(
        words=program.words.ctypes.data, parameters=values.ctypes.data, fills=fills.ctypes.data,
        ranges=ranges.ctypes.data, counts=counts.ctypes.data, n_fills=len(fills),
        n_ranges=len(ranges), slots=program.slots, warps=warps, shared=shared, late=late,
        counting=counting, grid=(ctypes.c_int64 * 3)(*grid, *[1] * (3 - len(grid))),
    )  # fmt: skip
    _library().run(ctypes.byref(launch))
    if launch.fault:
        raise Fault(_describe(program, launch))
    moved = [32 * sum(int((x & side > 0).sum()) for side in (1, 2)) for x in touched]
    return Executed(program, counts[program.starts], moved)


@contextmanager
def on_host(receive: Callable[[Any], Any] = run) -> Iterator[None]:
    """Launches of ops at level ``triton`` on CPU tensors go to ``receive`` instead of a GPU."""
    from tats_fast.kernels.fused.launch import intercepting

    with dispatch.assume_gpu(), intercepting(ARCHITECTURE, receive):
        yield


def _bits(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return int(np.float32(value).view(np.uint32)) if isinstance(value, float) else value


def _range(x: Tensor) -> tuple[int, int]:
    """Addresses from the first to past the last entry of a view."""
    last = sum(stride * (n - 1) for stride, n in zip(x.stride(), x.shape, strict=True))
    size = x.element_size() * (last + 1) if x.numel() else 0
    return x.data_ptr(), x.data_ptr() + size


def _describe(program: Program, launch: _Launch) -> str:
    instruction = program.instructions[int(np.searchsorted(program.starts, launch.word))]
    return (
        f"{instruction.source}, {instruction.name} {instruction.operands} "
        f"(PTX line {instruction.line}): {FAULTS[launch.fault]}; {launch.bytes} bytes at "
        f"{launch.address:#x}, program {list(launch.program)}, thread {launch.thread}"
    )
