"""How long a chip's units need for a launch's work: PREDICTED, from executed instructions.

Rates per multiprocessor and cycle are those of compute capability 9.0 (CUDA programming guide,
"Arithmetic instructions"; H100 white paper); mma.sync reaches 63% of wgmma's rate on Hopper (Luo et
al. 2024, arXiv:2402.13499, section 4.2). A chip's multiprocessors, clock and L2 are NVIDIA's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil

from .count import Work

MMA_SHARE = 0.63
CONFLICT_SHARE = 0.3
"""Of cycles counted as lost to bank conflicts, what an H100 seems to lose: of 137 and 72 thousand
of a program of ``project`` and ``scores`` its counters saw 31 and 64%."""
REGISTERS, SHARED_KIB, WARPS, BLOCKS = 65536, 227, 64, 32
"""Of a multiprocessor: 32-bit registers, KiB for blocks, and the most warps and blocks."""


@dataclass(frozen=True)
class Chip:
    """Rates: clock in Hz, L2 and memory in bytes/s."""

    memory: float
    multiprocessors: int = 132
    clock: float = 1.755e9
    l2: float = 7.0e12
    """6.7 TB/s were reached, counted as here (``grad_tokens`` on an H100)."""


CHIPS = {"H100": Chip(3.0e12), "H200": Chip(4.3e12)}
"""Memory as copies were measured on them."""


@dataclass(frozen=True)
class Seconds:
    """What each unit alone needs for the work, in seconds."""

    issue: float
    tensor: float
    special: float
    shared: float
    """Without conflicts of banks."""
    l2: float
    memory: float
    conflicts: float
    """Of shared memory, each counted as a whole cycle: an upper bound, and no unit of its own."""

    @property
    def busiest(self) -> tuple[str, float]:
        """The unit that needs longest."""
        names = (field.name for field in fields(self) if field.name != "conflicts")
        times = {name: getattr(self, name) for name in names}
        name = max(times, key=times.get)
        return name, times[name]

    def expected(self, resident: int) -> float:
        """With ``resident`` programs on a multiprocessor as many units work at once; the phases of
        one program follow each other, since each waits for the one before."""
        shared = self.shared + CONFLICT_SHARE * self.conflicts
        on_chip = self.issue + self.tensor + self.special + shared + self.l2
        return max(self.busiest[1], on_chip / resident)


def resident(warps: int, registers: int, shared: int) -> int:
    """Programs that fit on a multiprocessor; ``registers`` of a thread, ``shared`` in bytes."""
    per_thread = ceil(registers / 8) * 8
    by_registers = REGISTERS // (per_thread * 32 * warps)
    by_shared = SHARED_KIB * 1024 // (shared + 1024)
    return max(1, min(by_registers, by_shared, WARPS // warps, BLOCKS))


def seconds(work: Work, chip: Chip, programs: int, at_once: int) -> Seconds:
    """Times of ``work`` done by ``programs``, of which a multiprocessor holds ``at_once``; the last
    wave of programs leaves some of them idle."""
    waves = programs / (chip.multiprocessors * at_once)
    each = ceil(waves) / waves / (chip.multiprocessors * chip.clock)
    return Seconds(
        issue=each * work.issued / 4,
        tensor=each * (work.wgmma + work.mma / MMA_SHARE) / (4 * 2 * 512),
        special=each * work.special / 16,
        shared=each * (work.shared - work.conflicts),
        l2=work.l2 / chip.l2,
        memory=work.memory / chip.memory,
        conflicts=each * work.conflicts,
    )
