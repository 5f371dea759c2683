"""Compile a recorded launch for a chip that need not be there, as Triton's JIT would."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
ALIGNED = [["tt.divisibility", 16]]


def compile_launch(launch: Any, arch: int) -> tuple[Any, list[Any]]:
    """Triton's compiled kernel (``asm``, ``metadata``) of a ``launch.Launch`` for ``arch`` (80, 89,
    90, 100), and the arguments that are left at run time, in order."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature, constants, attributes, given = {}, {}, {}, []
    for position, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        value = launch.arguments[name]
        # The JIT makes a run-time 1 a constant.
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        given.append(value)
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            multiple = value.data_ptr() % 16 == 0
        elif isinstance(value, float):
            signature[name] = "fp32"
            multiple = False
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            multiple = value % 16 == 0
        if multiple:
            attributes[(position,)] = ALIGNED
    compiled = compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
    )
    return compiled, given


def registers_and_stack(compiled: Any) -> tuple[int, int]:
    """Registers and bytes of stack (where spills go) of a thread, from the chip's assembler."""
    text = _tool("cuobjdump", "-res-usage", compiled)
    return tuple(int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK"))


def instructions_by_line(compiled: Any) -> Counter[str]:
    """How many instructions of machine code each ``file:line`` of the kernel's source became."""
    found, line = Counter(), ""
    for text in _tool("nvdisasm", "--print-line-info", compiled).splitlines():
        if place := re.match(r'\s*//## File "([^"]+)", line (\d+)', text):
            line = f"{place[1].rsplit('/', 1)[-1]}:{place[2]}"
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+[@{A-Z]", text) and "NOP" not in text:
            found[line] += 1
    return found


def _tool(name: str, option: str, compiled: Any) -> str:
    """What a program that Triton's wheel carries says about the machine code."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [folder / name, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
