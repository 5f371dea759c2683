"""Compile every Triton kernel for chips that need not be there, and say what each takes of them.

    python benchmarks/kernel_resources.py                 # the configurations that run at ViT-B
    python benchmarks/kernel_resources.py --candidates    # every candidate configuration

Registers and spills come from the chip's assembler (cuobjdump, carried by Triton's wheel), shared
memory from Triton, instructions from the PTX. ``--update docs/kernels.md`` renews the table there.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parts import bench
from torch import Tensor

from tats_fast import kernels
from tats_fast.kernels import dispatch

ARCHITECTURES = (80, 90, 100)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


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


def compile_launch(launch: Any, arch: int) -> Resources:
    """Compile a recorded ``launch.Launch`` for ``arch`` (80, 89, 90, 100) as the JIT would."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        value = launch.arguments[name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:  # the JIT makes a run-time 1 a constant
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton_compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", arch, 32),
        options=options,
    )
    registers, stack = _usage(compiled.asm["cubin"])
    matrix = set(re.findall(r"\b(wgmma|tcgen05\.mma|mma\.sync)", compiled.asm["ptx"]))
    sizes = {n: v for n, v in launch.arguments.items() if n.startswith("BLOCK")}
    config = " ".join(f"{n}={v}" for n, v in sizes.items())
    return Resources(
        kernel=kernel_name(launch),
        arch=arch,
        config=f"{config} warps={launch.num_warps} stages={launch.num_stages}".strip(),
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        matrix=tuple(sorted(matrix)),
    )


def _usage(cubin: bytes) -> tuple[int, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return tuple(int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK"))


@dataclass(frozen=True)
class Shape:
    """Sizes of one call of the ops; the defaults are ViT-B on 16 x 224 x 224 at ratio .95."""

    batch: int = 2
    frames: int = 8
    places: int = 196
    heads: int = 12
    dim: int = 64
    decoder_width: int = 384
    patch_dim: int = 1536
    visible: int = 78
    dtype: torch.dtype = torch.bfloat16


def op_calls(shape: Shape) -> dict[str, Callable[[], Any]]:
    """Every op's forward and backward at ``shape``, on memory that nobody has written."""
    batch, tokens = shape.batch, shape.frames * shape.places
    width = shape.heads * shape.dim
    masked = tokens - shape.visible

    def floats(*size: int, dtype: torch.dtype = shape.dtype, grad: bool = True) -> Tensor:
        return torch.zeros(size, dtype=dtype, requires_grad=grad)

    def differentiate(*outputs: Tensor) -> None:
        outputs = tuple(out for out in outputs if out.requires_grad)
        torch.autograd.backward(outputs, [torch.empty_like(out) for out in outputs])

    order = torch.arange(tokens).repeat(batch, 1)
    offsets = torch.arange(batch + 1, dtype=torch.int32) * shape.visible
    patches = torch.zeros(batch, tokens, shape.patch_dim, dtype=torch.uint8)

    def spatial() -> None:
        qkv = floats(batch, tokens, 3, shape.heads, shape.dim)
        differentiate(*kernels.trajectory_attention(qkv, shape.frames))

    def temporal() -> None:
        q2, y = (
            floats(batch, tokens, shape.heads, shape.dim),
            floats(batch, tokens, shape.frames, width),
        )
        weights = floats(width, width), floats(width, width), floats(width)
        differentiate(kernels.trajectory_temporal(q2, y, *weights))

    def gather() -> None:
        positions = floats(tokens, width, dtype=torch.float32, grad=False)
        differentiate(
            kernels.token_gather(floats(batch, tokens, width), order[:, : shape.visible], positions)
        )

    def assemble() -> None:
        width = shape.decoder_width
        positions = floats(tokens, width, dtype=torch.float32, grad=False)
        token = floats(width, dtype=torch.float32)
        for packed in (None, offsets):
            visible = floats(batch, shape.visible, width)
            visible = visible if packed is None else visible.flatten(0, 1)
            differentiate(kernels.decoder_assemble(visible, token, positions, order, packed))

    def error() -> None:
        prediction = floats(batch, masked, shape.patch_dim)
        differentiate(kernels.masked_mse(prediction, patches, order[:, shape.visible :]))

    def logprob() -> None:
        differentiate(*kernels.policy_logprob(floats(batch, tokens), 0.05))

    def sample() -> None:
        uniform = torch.zeros(batch, tokens)
        differentiate(*kernels.policy_sample(floats(batch, tokens), uniform, 0.05))

    return {
        "trajectory_attention": spatial,
        "trajectory_temporal": temporal,
        "token_gather": gather,
        "decoder_assemble": assemble,
        "masked_mse": error,
        "policy_logprob": logprob,
        "policy_sample": sample,
    }


def record(op: str, shape: Shape, arch: int) -> list[Any]:
    """The launches of one op's forward and backward on a chip of architecture ``arch``."""
    from tats_fast.kernels.fused.launch import recording

    with kernels.use("triton"), dispatch.assume_gpu(), recording(arch) as launches:
        op_calls(shape)[op]()
    return list(launches)


def tunables() -> dict[str, Any]:
    """Every ``launch.Tunable`` by name."""
    return {t.name: t for _, t in _tunables()}


def _tunables() -> Iterator[tuple[str, Any]]:
    """(module, ``launch.Tunable``) of all files of kernels/fused."""
    from importlib import import_module

    from tats_fast.kernels.fused.launch import Tunable

    for name in dispatch.TRITON_MODULES:
        module = import_module(f"tats_fast.kernels.fused.{name}")
        for value in vars(module).values():
            if isinstance(value, Tunable):
                yield module.__name__, value


def launches(op: str, shape: Shape, arch: int, candidates: bool = False) -> Iterator[Any]:
    """Each launch of ``op`` once; with ``candidates``, once for every configuration it may take."""
    from tats_fast.kernels.fused.launch import forced

    seen = set()
    variants: list[Any] = [contextlib.nullcontext()]
    if candidates:
        files = {launch.kernel.fn.__module__ for launch in record(op, shape, arch)}
        own = [t for file, t in _tunables() if file in files]
        variants += [forced(t.name, c) for t in own for c in t.candidates]
    for variant in variants:
        with variant:
            recorded = record(op, shape, arch)
        for launch in recorded:
            sizes = {
                p.name: launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr
            }
            key = (kernel_name(launch), str(sizes), launch.num_warps, launch.num_stages)
            if key not in seen:
                seen.add(key)
                yield launch


def kernel_name(launch: Any) -> str:
    """Name of a launch's kernel as written in its file, without the frame of underscores."""
    return launch.kernel.fn.__name__.strip("_").removesuffix("_kernel")


def main() -> int:
    """Command line."""
    parser = bench.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--candidates", action="store_true", help="every candidate configuration")
    parser.add_argument("--op", nargs="+", choices=tuple(op_calls(Shape())), help="these ops only")
    parser.add_argument("--update", metavar="FILE", help="rewrite the table in this Markdown file")
    options = parser.parse_args()
    problem = dispatch.triton_problem("cuda")
    if problem is not None:
        return bench.fail(problem, 1)
    names = options.op or op_calls(Shape())
    found = [
        compile_launch(launch, arch)
        for op in names
        for arch in options.arch
        for launch in launches(op, Shape(), arch, options.candidates)
    ]
    rows = [
        [r.kernel, f"sm_{r.arch}", r.config, str(r.registers), str(r.stack),
         bench.number(r.shared / 1024), ", ".join(r.matrix) or "-"]
        for r in sorted(found, key=lambda r: (r.kernel, r.arch))
    ]  # fmt: skip
    print(bench.table(HEADER, rows))
    if options.update:
        return update(Path(options.update), markdown(rows))
    return 0


HEADER = ("kernel", "chip", "configuration", "registers", "stack B", "shared KiB", "matrix")
MARKS = ("<!-- kernel_resources -->", "<!-- /kernel_resources -->")


def markdown(rows: list[list[str]]) -> str:
    """The table for docs/kernels.md, with the Triton release that compiled it."""
    import triton

    lines = [HEADER, ["---"] * len(HEADER), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"Triton {triton.__version__}:\n\n{table}"


def update(path: Path, table: str) -> int:
    """Put ``table`` between the marks of a Markdown file; the exit code."""
    try:
        text = path.read_text()
        before, rest = text.split(MARKS[0])
        _, after = rest.split(MARKS[1])
    except (OSError, ValueError):
        return bench.fail(f"--update {path}: no readable file with the marks {MARKS}", 2)
    path.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
