"""Compile a recorded launch for a chip that need not be there, as Triton's JIT would."""

from __future__ import annotations

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
