"""Read the PTX of one kernel: its registers, parameters and instructions.

PTX ISA (NVIDIA), chapters 4 to 6. What is read is what Triton writes: one entry, no calls.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LABEL = re.compile(r"\s*([$\w]+)\s*:(?!:)")
_GUARD = re.compile(r"@(!?)(\S+)\s+(.*)", re.DOTALL)
_SPACE = re.compile(r"[\s{}]*")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)


@dataclass(frozen=True)
class Instruction:
    """``@guard name operands``; a label is an instruction named ``label``.

    Operands are registers, numbers, labels, addresses in brackets, and tuples of them.
    """

    name: str
    operands: tuple[str | tuple[str, ...], ...]
    guard: str = ""
    negated: bool = False
    line: int = 0
    """Of the PTX."""
    source: str = ""
    """``file:line`` of the kernel's source."""


@dataclass
class Kernel:
    """A parsed entry. ``types`` is a register's type by name, or by what precedes its number."""

    types: dict[str, str] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)

    def type_of(self, register: str) -> str:
        """Declared type, for example ``b32``; KeyError for what is no register."""
        return self.types[register if register in self.types else register.rstrip("0123456789")]


def parse(text: str) -> Kernel:
    """The entry of a PTX file."""
    kernel = Kernel()
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', text))
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if ".entry" in line)
    opening = next(i for i in range(start, len(lines)) if lines[i].startswith("{"))
    for line in lines[start:opening]:
        kernel.parameters += re.findall(r"\.param .*?(\w+_param_\d+)", line)
    rest, source = "", ""
    for number in range(opening + 1, len(lines)):
        line = lines[number]
        if line.startswith("}"):
            break
        line = line.split("//")[0].strip()
        if place := re.match(r"\.loc\s+(\d+)\s+(\d+)", line):
            source = f"{files.get(place[1], '').rsplit('/', 1)[-1]}:{place[2]}"
        elif not re.match(r"\.(?!reg)\w+", line):
            rest = _statements(kernel, f"{rest} {line}", number + 1, source)
    assert not rest, rest
    return kernel


def _statements(kernel: Kernel, text: str, line: int, source: str) -> str:
    """Take whole statements off the front of ``text``; what is left waits for the next line."""
    while text := text[_SPACE.match(text).end() :]:
        if label := _LABEL.match(text):
            kernel.instructions.append(Instruction("label", (label[1],), "", False, line, source))
            text = text[label.end() :]
            continue
        statement, semicolon, after = text.partition(";")
        if not semicolon:
            break
        text = after
        if registers := _REGISTERS.match(statement):
            for name in registers[2].split(","):
                kernel.types[name.strip().split("<")[0]] = registers[1]
            continue
        guard = _GUARD.match(statement)
        name, _, operands = (guard[3] if guard else statement).strip().partition(" ")
        name, _, more = name.partition("\t")
        kernel.instructions.append(
            Instruction(
                name,
                _operands(more + operands),
                guard[2] if guard else "",
                bool(guard and guard[1]),
                line,
                source,
            )
        )
    return text


def _operands(text: str) -> tuple[str | tuple[str, ...], ...]:
    found = []
    for part in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s][^,]*", text):
        if part.startswith("{"):
            found.append(tuple(name.strip() for name in part[1:-1].split(",")))
        else:
            found.append(part.strip())
    return tuple(found)


def address(operand: str) -> tuple[str, int]:
    """``[base + offset]`` -> base and offset in bytes."""
    base, offset = re.fullmatch(r"\[\s*(\S+?)\s*(?:\+\s*(-?\w+)\s*)?\]", operand).groups()
    return base, int(offset or "0", 0)
