"""From PTX to the numbers that ``machine.c`` executes.

An instruction is its code, guard, length and operands, one 32-bit word each. Registers, constants
and %tid alike are slots of a warp's register file, counted in rows of 32 lanes x 4 bytes; a guard
is the slot + 1 of a predicate, negative for @!, or 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .operations import OPERATIONS, normal, wide
from .ptx import Instruction, Kernel, address

MACHINE = (
    "label", "branch", "exit", "nothing", "load_parameter", "load_global", "store_global",
    "load_shared", "store_shared", "copy", "split", "join", "barrier", "commit", "wait",
    "load_matrix", "store_matrix", "shuffle", "multiply", "multiply_async", "commit_async",
    "wait_async",
)  # fmt: skip
"""What is not lane-wise arithmetic, as ``machine.c`` has it; from "barrier" on, what the lanes of a
warp must execute together."""
CODES = {name: i for i, name in enumerate((*OPERATIONS, *MACHINE))}
SPECIAL = ("%tid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z")
"""Registers that the machine fills in, in slots 0 to 6."""
NOTHING = ("fence", "membar", "griddepcontrol", "wgmma.fence", "bar.warp", "pragma")
SHUFFLES = ("bfly", "idx", "up", "down")
NO_SLOT = -1
HEAD = 3
"""Words before the operands."""


class Unknown(ValueError):
    """PTX that the machine does not know."""


@dataclass
class Program:
    """``starts``: word at which each of ``instructions`` begins. ``fills``: (slot, wide, value) of
    the constants."""

    instructions: list[Instruction]
    parameters: list[str]
    words: np.ndarray
    starts: np.ndarray
    slots: int
    fills: list[tuple[int, bool, int]]


@dataclass
class _Translation:
    kernel: Kernel
    slots: int = len(SPECIAL)
    named: dict[str, int] = field(default_factory=lambda: {n: i for i, n in enumerate(SPECIAL)})
    constants: dict[tuple[bool, int], int] = field(default_factory=dict)
    jumps: list[tuple[int, str]] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def _new(self, is_wide: bool) -> int:
        self.slots += 1 + is_wide
        return self.slots - 1 - is_wide

    def type_of(self, operand: str, kind: str) -> str:
        """Declared type of a register; ``kind`` of a number."""
        return self.kernel.type_of(operand) if operand[0] == "%" else kind

    def slot(self, operand: str, kind: str) -> int:
        """Of a register, or of a number as a constant of type ``kind``."""
        if operand == "_":
            return NO_SLOT
        if operand not in self.named:
            try:
                self.named[operand] = self._new(wide(self.kernel.type_of(operand)))
            except KeyError:
                return self.constant(self._number(operand), wide(kind))
        return self.named[operand]

    def _number(self, text: str) -> int:
        """Bits of an immediate operand; shared memory is at address 0, parameter i at 8 i."""
        if text.startswith(("0f", "0F", "0d", "0D")):
            return int(text[2:], 16)
        if text[0].isdigit() or text[0] == "-":
            return int(text, 0)
        return 0 if text == "global_smem" else 8 * self.kernel.parameters.index(text)

    def constant(self, value: int, is_wide: bool) -> int:
        """The slot that holds ``value`` in every lane."""
        key = is_wide, value & (2**64 - 1 if is_wide else 2**32 - 1)
        if key not in self.constants:
            self.constants[key] = self._new(is_wide)
        return self.constants[key]

    def place(self, operand: str, kind: str) -> tuple[int, int]:
        """Slot of an address's base, and its offset in bytes."""
        base, offset = address(operand)
        return self.slot(base, kind), offset

    def emit(self, instruction: Instruction, code: str, *operands: int) -> None:
        """Append one instruction."""
        guard = 0
        if instruction.guard:
            guard = 1 + self.slot(instruction.guard, "pred")
            guard = -guard if instruction.negated else guard
        self.words += [CODES[code], guard, HEAD + len(operands), *operands]


def translate(kernel: Kernel) -> Program:
    """The program of a parsed kernel.

    Raises:
        Unknown: an instruction that the machine does not have; it says which and where.
    """
    state, starts, labels = _Translation(kernel), [], {}
    for instruction in kernel.instructions:
        starts.append(len(state.words))
        if instruction.name == "label":
            labels[instruction.operands[0]] = len(state.words)
        try:
            _translate(state, instruction)
        except (KeyError, IndexError, ValueError, AssertionError) as problem:
            raise Unknown(f"{instruction}: {problem!r}") from None
    for word, label in state.jumps:
        state.words[word] = labels[label]
    return Program(
        kernel.instructions,
        kernel.parameters,
        np.array(state.words, dtype=np.int32),
        np.array(starts, dtype=np.int32),
        state.slots,
        [(slot, is_wide, value) for (is_wide, value), slot in state.constants.items()],
    )


def _translate(state: _Translation, instruction: Instruction) -> None:
    name, operands = instruction.name, instruction.operands
    family = name.split(".")[0]
    if name.startswith(NOTHING):
        state.emit(instruction, "nothing")
    elif name.startswith("ld.param"):
        _parameter(state, instruction)
    elif name.startswith("cp.async"):
        _copy(state, instruction)
    elif family in ("ld", "st"):
        _memory(state, instruction)
    elif family in ("ldmatrix", "stmatrix"):
        _matrix(state, instruction)
    elif name.startswith(("mma.sync", "wgmma")):
        _product(state, instruction)
    elif family == "shfl":
        value = [state.slot(x.split("|")[0], "u32") for x in operands[:3]]
        assert operands[3:] in (("31", "-1"), ("0", "-1")), "part of a warp"
        state.emit(instruction, "shuffle", SHUFFLES.index(name.split(".")[2]), *value)
    elif family == "mov" and any(isinstance(x, tuple) for x in operands):
        code = "split" if isinstance(operands[0], tuple) else "join"
        whole, parts = operands[::-1] if code == "split" else operands
        is_wide = name.endswith("64")
        slots = [state.slot(part, "u32") for part in parts]
        state.emit(instruction, code, is_wide, state.slot(whole, f"u{32 << is_wide}"), *slots)
    elif family == "bra":
        state.emit(instruction, "branch", 0)
        state.jumps.append((len(state.words) - 1, operands[0]))
    elif family in ("ret", "exit", "label"):
        state.emit(instruction, "label" if family == "label" else "exit")
    elif family in ("bar", "barrier"):
        assert operands == ("0",), "a barrier of some warps"
        state.emit(instruction, "barrier")
    else:
        _arithmetic(state, instruction)


def _arithmetic(state: _Translation, instruction: Instruction) -> None:
    name = normal(instruction.name)
    if name.startswith("cvta"):
        name = "mov.u64"
    operation = OPERATIONS[name]
    kinds = (operation.result, *operation.operands)
    slots = [state.slot(x, kind) for x, kind in zip(instruction.operands, kinds, strict=True)]
    state.emit(instruction, name, *slots)


def _parameter(state: _Translation, instruction: Instruction) -> None:
    """Operands: bytes, signed, wide result, result, slot of the address, offset."""
    register, source = instruction.operands
    kind = instruction.name.rsplit(".", 1)[1]
    state.emit(
        instruction, "load_parameter", int(kind[1:]) // 8, kind[0] == "s",
        wide(state.kernel.type_of(register)), state.slot(register, ""), *state.place(source, "u32"),
    )  # fmt: skip


def _memory(state: _Translation, instruction: Instruction) -> None:
    """Operands: bytes of an element, wide registers (they may be wider than the element), slot of
    the address, offset, slots of the elements."""
    direction, space, *_, kind = instruction.name.split(".")
    load, space = direction == "ld", space.removesuffix("::cta")
    assert space in ("global", "shared"), "another space"
    assert not load or kind[0] in "bu", "sign extension"
    place, registers = instruction.operands[::-1] if load else instruction.operands
    registers = registers if isinstance(registers, tuple) else (registers,)
    slots = [state.slot(register, kind) for register in registers]
    (is_wide,) = {wide(state.type_of(register, kind)) for register in registers if register != "_"}
    where = state.place(place, "u64" if space == "global" else "u32")
    code = f"{'load' if load else 'store'}_{space}"
    state.emit(instruction, code, int(kind[1:]) // 8, is_wide, *where, *slots)


def _copy(state: _Translation, instruction: Instruction) -> None:
    """Operands: bytes, target slot and offset, source slot and offset, slot of the bytes read."""
    name, operands = instruction.name, instruction.operands
    if "commit_group" in name:
        state.emit(instruction, "commit")
    elif "wait_" in name:
        state.emit(instruction, "wait", int(operands[0]) if operands else 0)
    else:
        size = int(operands[2], 0)
        read = state.slot(operands[3], "u32") if len(operands) > 3 else state.constant(size, False)
        target, source = state.place(operands[0], "u32"), state.place(operands[1], "u64")
        state.emit(instruction, "copy", size, *target, *source, read)


def _matrix(state: _Translation, instruction: Instruction) -> None:
    """Operands: transposed, slot of the address, offset, slots of 8 x 8 matrices of 16 bits."""
    load = instruction.name.startswith("ld")
    registers, place = instruction.operands if load else instruction.operands[::-1]
    assert ".m8n8." in instruction.name and instruction.name.endswith("b16")
    slots = [state.slot(register, "u32") for register in registers]
    transposed = "trans" in instruction.name.split(".")
    where = state.place(place, "u32")
    state.emit(instruction, "load_matrix" if load else "store_matrix", transposed, *where, *slots)


def _product(state: _Translation, instruction: Instruction) -> None:
    """mma.sync: bf16, slots of D (4), A (4), B (2), C (4). wgmma: bf16, A in registers, A and B
    transposed, scale of D, B's descriptor, A (4 slots or a descriptor), D."""
    name, operands = instruction.name, instruction.operands
    if name.startswith("wgmma.commit_group"):
        return state.emit(instruction, "commit_async")
    if name.startswith("wgmma.wait_group"):
        return state.emit(instruction, "wait_async", int(operands[0]))
    parts = name.split(".")
    assert "f32" in parts and parts.count("bf16") + parts.count("f16") == 2, "other types"
    bf16 = "bf16" in parts
    if name.startswith("mma.sync"):
        assert "m16n8k16" in parts and parts[4:6] == ["row", "col"]
        slots = [state.slot(x, "u32") for group in operands for x in group]
        return state.emit(instruction, "multiply", bf16, *slots)
    sums, a, b, scale, *more = operands
    assert more[:2] == ["1", "1"], "negated operands"
    in_registers = isinstance(a, tuple)
    transposed = [int(x) for x in more[2:]]
    transposed = [0, *transposed] if in_registers else transposed
    left = [state.slot(x, "u64") for x in (a if in_registers else (a,))]
    return state.emit(
        instruction, "multiply_async", bf16, in_registers, *transposed,
        state.slot(scale, "pred"), state.slot(b, "u64"), *left,
        *(state.slot(x, "u32") for x in sums),
    )  # fmt: skip
