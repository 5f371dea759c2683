"""What a launch executed, by the units of a chip that do it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .compiling import instructions_by_line
from .ptx import Instruction
from .run import Executed

EXPONENTIALS = ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "div.full", "div.approx")
"""What the special function unit does a part of, once each."""
MEMORY = re.compile(r"(ld|st)\.global|cp\.async\.c[ag]")


@dataclass(frozen=True)
class Work:
    """Of a whole launch.

    ``issued``: instructions of warps, in machine code. ``wgmma`` and ``mma``: FLOP of either kind
    of tensor-core instruction. ``special``: lanes of the special function unit. ``shared``: cycles
    of a multiprocessor's shared memory, ``conflicts`` those among them lost to banks. ``l2``: bytes
    of the 32-byte sectors that warps ask for. ``memory``: bytes of different sectors read and
    written.
    """

    issued: float
    wgmma: int
    mma: int
    special: int
    shared: float
    conflicts: float
    l2: int
    memory: int


def work(executed: Executed, compiled: Any) -> Work:
    """Add up ``run(..., counting=True)``; ``compiled`` is Triton's kernel."""
    totals = dict.fromkeys(("wgmma", "mma", "special", "l2"), 0)
    shared = conflicts = 0.0
    for instruction, (warps, lanes, units) in zip(
        executed.program.instructions, executed.counts.tolist(), strict=True
    ):
        name = instruction.name
        if name.startswith("wgmma.mma_async"):
            flop, read = _warpgroup_product(instruction)
            totals["wgmma"] += warps * flop // 4
            shared += warps * read / 4 / 128
        elif name.startswith("mma.sync.aligned.m16n8k16"):
            totals["mma"] += warps * 2 * 16 * 8 * 16
        elif name.startswith(EXPONENTIALS):
            totals["special"] += lanes
        elif MEMORY.match(name):
            totals["l2"] += 32 * units
            if name.startswith("cp"):  # written to shared memory on arrival
                shared += lanes * int(instruction.operands[2], 0) / 128
        elif units:
            shared += units
            conflicts += max(0, units - _least_cycles(name, warps, lanes))
    issued, memory = _issued(executed, compiled), sum(executed.touched)
    return Work(issued, shared=shared, conflicts=conflicts, memory=memory, **totals)


def _warpgroup_product(instruction: Instruction) -> tuple[int, int]:
    """FLOP of a wgmma, and bytes that it reads from shared memory."""
    columns = int(re.search(r"m64n(\d+)k16", instruction.name)[1])
    rows = 0 if isinstance(instruction.operands[1], tuple) else 64
    return 2 * 64 * columns * 16, (columns + rows) * 16 * 2


def _least_cycles(name: str, warps: int, lanes: int) -> float:
    """Cycles of a load or store of shared memory that touches every bank once in each."""
    if matrices := re.search(r"\.x([124])\.", name):
        return warps * int(matrices[1])
    bytes_ = re.search(r"(?:\.v([24]))?\.[bf](\d+)$", name)
    return max(warps, lanes * int(bytes_[1] or 1) * int(bytes_[2]) / 8 / 128)


def _issued(executed: Executed, compiled: Any) -> float:
    """Instructions of machine code, each as often as PTX of its line of source was executed."""
    lines: dict[str, list[int]] = {}
    for instruction, warps in zip(
        executed.program.instructions, executed.counts[:, 0].tolist(), strict=True
    ):
        if instruction.name != "label":
            lines.setdefault(instruction.source, []).append(warps)
    everywhere = float(np.mean([warps for counted in lines.values() for warps in counted]))
    often = {line: float(np.mean(counted)) for line, counted in lines.items()}
    code = instructions_by_line(compiled)
    return sum(number * often.get(line, everywhere) for line, number in code.items())
