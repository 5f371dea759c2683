"""PyTorch's attention backends at the step's shapes, each alone: cuDNN, flash, efficient, math.

    python benchmarks/sdpa.py --batch 64 --json sdpa.json      # needs a CUDA GPU to mean anything

Forward and backward of ``scaled_dot_product_attention`` in bf16: the encoder's 78 visible tokens
(12 heads of 64) and 1,568 tokens (12 heads of 64, and the decoder's 6). Which backend PyTorch picks
by itself is the row ``default``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from parts import bench
from parts.ceilings import DTYPES
from parts.isolate import is_cuda_error
from parts.ops.timing import interleaved_ms
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tats_fast.engine.distributed import pick_device
from tats_fast.models import flops

BACKENDS = {
    "default": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
SHAPES = {"encoder": (12, 78), "decoder": (6, 1568), "joint sampler": (12, 1568)}
"""Heads and tokens; 64 numbers a head."""
DIM = 64
FACTOR = 3.5
"""FLOP of forward and backward over those of the forward."""


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--dtype", default="bf16", choices=tuple(DTYPES))
    add("--batch", type=bench.positive_int, default=64)
    add("--steps", type=bench.positive_int, default=20, help="timed calls (default: %(default)s)")
    add("--shapes", type=bench.names_of(SHAPES), default=tuple(SHAPES), metavar="A,B")
    add("--json", metavar="FILE", help="write the record, after every shape")
    return parser


def call_of(backend: SDPBackend | None, leaves: list[torch.Tensor]) -> Callable[[], None]:
    """Forward and backward through one backend."""

    def call() -> None:
        with nullcontext() if backend is None else sdpa_kernel(backend):
            out = scaled_dot_product_attention(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return call


def measure(name: str, options: Any, device: torch.device) -> dict[str, dict[str, Any]]:
    """Every backend that takes this shape, by name; why not for the others.

    Raises:
        Failed: a CUDA error, after which nothing can run.
    """
    heads, tokens = SHAPES[name]
    # As in the model: one projection's output, heads moved forward as a view.
    qkv = torch.randn(
        (options.batch, tokens, 3, heads, DIM), dtype=DTYPES[options.dtype], device=device
    )
    leaves = [x.transpose(1, 2).detach().requires_grad_() for x in qkv.unbind(2)]
    entries: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], None]] = {}
    for backend, kind in BACKENDS.items():
        call = call_of(kind, leaves)
        try:
            call()
            bench.synchronize(device)
        except Exception as error:
            if is_cuda_error(error):
                raise bench.Failed(f"{name}, {backend}: {bench.first_line(error)}") from error
            entries[backend] = {"skipped": bench.first_line(error)}
        else:
            calls[backend] = call
    work = FACTOR * options.batch * flops.attention(tokens, heads * DIM)
    for backend, times in interleaved_ms(calls, device, options.steps, 3).items():
        took = bench.percentiles(times)
        entries[backend] = {"fwd_bwd_ms": took, "tflops": work / took["p50"] / 1e9}
    return entries


def run(options: Any) -> int:
    """All shapes, printed and written one by one."""
    device = pick_device(options.device)
    record = bench.new_record(device)
    record["config"] = {key: getattr(options, key) for key in ("batch", "dtype", "steps")}
    record["sdpa"] = {}
    print(bench.hardware_line(record["hardware"]))
    for name in options.shapes:
        entries = record["sdpa"][name] = measure(name, options, device)
        rows = [
            [backend, bench.number(entry["fwd_bwd_ms"]["p50"], 3), bench.number(entry["tflops"])]
            for backend, entry in entries.items()
            if "fwd_bwd_ms" in entry
        ]
        heads, tokens = SHAPES[name]
        print(f"\n{name}: {options.batch} clips, {tokens} tokens, {heads} heads of {DIM}")
        print(bench.table(["backend", "forward + backward p50, ms", "TFLOP/s"], rows))
        for backend, entry in entries.items():
            if "skipped" in entry:
                print(f"skipped {backend}: {entry['skipped']}")
        if options.json:
            bench.write_json(options.json, record)
    return 0


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
