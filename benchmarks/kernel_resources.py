"""Compile every Triton kernel for chips that need not be there, and say what each takes of them.

    python benchmarks/kernel_resources.py                 # the configurations that run at ViT-B
    python benchmarks/kernel_resources.py --candidates    # every candidate configuration

Registers and spills come from the chip's assembler (cuobjdump, carried by Triton's wheel), shared
memory from Triton, instructions from the PTX. ``--update docs/kernels.md`` renews the table there.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from parts import bench
from parts.machine.compiling import compile_launch, registers_and_stack

from tats_fast import kernels
from tats_fast.kernels import dispatch
from tats_fast.kernels.example_inputs import MAKERS, RATIO_OPS, Shape

ARCHITECTURES = (80, 90, 100)
HEADER = ("kernel", "chip", "configuration", "registers", "stack B", "shared KiB", "matrix")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes: registers per thread, bytes of stack (where spills go) per
    thread, bytes of shared memory per block; ``matrix`` names its tensor-core instructions."""

    kernel: str
    arch: int
    config: str
    registers: int
    stack: int
    shared: int
    matrix: tuple[str, ...]


def resources_of(launch: Any, arch: int) -> Resources:
    """Compile a recorded ``launch.Launch`` for ``arch`` (80, 89, 90, 100) as the JIT would."""
    compiled, _ = compile_launch(launch, arch)
    registers, stack = registers_and_stack(compiled)
    matrix = set(re.findall(r"\b(wgmma|tcgen05\.mma|mma\.sync)", compiled.asm["ptx"]))
    return Resources(
        kernel=kernel_name(launch),
        arch=arch,
        config=configuration(launch),
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        matrix=tuple(sorted(matrix)),
    )


def run_op(op: str, shape: Shape) -> None:
    """Forward and backward of ``op``."""
    outputs = getattr(kernels, op)(*MAKERS[op](shape).values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs = [out for out in outputs if out.requires_grad]
    torch.autograd.backward(outputs, [torch.empty_like(out) for out in outputs])


def record(op: str, shape: Shape, arch: int) -> list[Any]:
    """The launches of one op's forward and backward on a chip of architecture ``arch``."""
    from tats_fast.kernels.fused.launch import recording

    with kernels.use("triton"), dispatch.assume_gpu(), recording(arch) as launches:
        run_op(op, shape)
    return list(launches)


def tunables() -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every ``launch.Tunable`` of kernels/fused with the ops that its file is for."""
    from importlib import import_module

    from tats_fast.kernels import fused
    from tats_fast.kernels.fused.launch import Tunable

    for file in sorted(Path(fused.__file__).parent.glob("*.py")):
        ops = [op for op in MAKERS if op.startswith(file.stem) or file.stem.startswith(op)]
        for value in vars(import_module(f"{fused.__name__}.{file.stem}")).values():
            if isinstance(value, Tunable):
                yield value, tuple(ops)


def launches(op: str, shape: Shape, arch: int, candidates: bool = False) -> Iterator[Any]:
    """Each launch of ``op`` once, ops of visible tokens on a packed batch too; with ``candidates``,
    once for every configuration that it may take."""
    from tats_fast.kernels.fused.launch import forced

    seen = set()
    variants: list[Any] = [contextlib.nullcontext()]
    if candidates:
        own = [tunable for tunable, ops in tunables() if op in ops]
        variants += [forced(t.name, c) for t in own for c in t.candidates]
    for variant in variants:
        with variant:
            recorded = record(op, shape, arch)
            if op in RATIO_OPS:
                recorded += record(op, replace(shape, packed=True), arch)
        for launch in recorded:
            constants = [launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr]
            key = (kernel_name(launch), *constants, launch.num_warps, launch.num_stages)
            if key not in seen:
                seen.add(key)
                yield launch


def kernel_name(launch: Any) -> str:
    """Name of a launch's kernel as written in its file, without the frame of underscores."""
    return launch.kernel.fn.__name__.strip("_").removesuffix("_kernel")


def configuration(launch: Any) -> str:
    """Sizes of blocks, warps and pipeline depth of a launch."""
    sizes = [f"{n}={v}" for n, v in launch.arguments.items() if n.startswith("BLOCK")]
    return " ".join([*sizes, f"warps={launch.num_warps}", f"stages={launch.num_stages}"])


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("--arch", type=int, nargs="+", default=ARCHITECTURES)
    add("--candidates", action="store_true", help="every candidate configuration")
    add("--op", nargs="+", choices=tuple(MAKERS), default=tuple(MAKERS), help="these ops only")
    add("--update", metavar="FILE", help="rewrite the table in this Markdown file")
    return parser


def run(options: Any) -> int:
    """Compile, print and update."""
    problem = dispatch.triton_problem("cuda")
    if problem is not None:
        raise bench.Failed(problem)
    compiled = [
        resources_of(launch, arch)
        for op in options.op
        for arch in options.arch
        for launch in launches(op, Shape(), arch, options.candidates)
    ]
    rows = [
        [r.kernel, f"sm_{r.arch}", r.config, str(r.registers), str(r.stack),
         bench.number(r.shared / 1024), ", ".join(r.matrix) or "-"]
        for r in sorted(compiled, key=lambda r: (r.kernel, r.arch))
    ]  # fmt: skip
    print(bench.table(HEADER, rows))
    if options.update:
        import triton

        table = f"Triton {triton.__version__}:\n\n{bench.markdown(HEADER, rows)}"
        bench.put_between(options.update, "kernel_resources", table)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done; 1 nothing to compile with; 2 wrong use."""
    return bench.run_script(make_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
