"""Attention backends at the step's shapes, each alone: PyTorch's own and FlashAttention 2 and 4.

    python benchmarks/sdpa.py --batch 64 --json sdpa.json
    OMP_NUM_THREADS=1 python benchmarks/sdpa.py --device cpu --batch 2 --steps 6

Forward and backward in bf16: the encoder's 78 visible tokens (12 heads of 64) and 1,568 tokens (12
heads of 64, and the decoder's 6). ``flash``, ``efficient`` and ``cudnn`` are those of
``scaled_dot_product_attention``, ``default`` which of them PyTorch picks; the others are values of
``model.attention``: plain products, what a step takes without further packages, and two packages.
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
from tats_fast.models.attention import attention, unavailable

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "default": None,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
BACKENDS = (*SDPA, "eager", "sdpa", "flash2", "flash4")
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
    add("--json", metavar="FILE", help="write the record as it grows")
    return parser


def call_of(backend: str, leaves: list[torch.Tensor]) -> Callable[[], None]:
    """Forward and backward of q, k, v (B, N, h, d) through one backend.

    Raises:
        RuntimeError: it does not run here, with the reason.
    """
    if backend not in SDPA and (reason := unavailable(backend, leaves[0].device.type)):
        raise RuntimeError(reason)

    def call() -> None:
        if backend in SDPA:
            chosen = SDPA[backend]
            with nullcontext() if chosen is None else sdpa_kernel(chosen):
                out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in leaves))
        else:
            out = attention(*leaves, backend)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return call


def measure(shape: str, backend: str, options: Any, device: torch.device) -> dict[str, Any]:
    """One backend's entry at one shape; why not, where it does not take it.

    Raises:
        Failed: a CUDA error, after which nothing can run.
    """
    heads, tokens = SHAPES[shape]
    # As in the model: views of one projection's output.
    qkv = torch.randn(
        (options.batch, tokens, 3, heads, DIM), dtype=DTYPES[options.dtype], device=device
    )
    leaves = [x.detach().requires_grad_() for x in qkv.unbind(2)]
    try:
        call = call_of(backend, leaves)
        call()
        bench.synchronize(device)
    except Exception as error:
        if is_cuda_error(error):
            raise bench.Failed(f"{shape}, {backend}: {bench.first_line(error)}") from error
        return {"skipped": bench.first_line(error)}
    took = bench.percentiles(interleaved_ms({"": call}, device, options.steps, 3)[""])
    work = FACTOR * options.batch * flops.attention(tokens, heads * DIM)
    return {"fwd_bwd_ms": took, "tflops": work / took["p50"] / 1e9}


def run(options: Any) -> int:
    """Backend by backend, so that one that kills the process loses nothing of those before it."""
    device = pick_device(options.device)
    record = bench.new_record(device)
    record["config"] = {key: getattr(options, key) for key in ("batch", "dtype", "steps")}
    record["sdpa"] = {shape: {} for shape in options.shapes}
    print(bench.hardware_line(record["hardware"]), flush=True)
    for backend in BACKENDS:
        for shape in options.shapes:
            entry = record["sdpa"][shape][backend] = measure(shape, backend, options, device)
            heads, tokens = SHAPES[shape]
            named = (
                f"{backend}, {shape} ({options.batch} x {tokens} tokens, {heads} heads of {DIM})"
            )
            if "skipped" in entry:
                print(f"{named}: skipped: {entry['skipped']}", flush=True)
            else:
                took = bench.number(entry["fwd_bwd_ms"]["p50"], 3)
                rate = bench.number(entry["tflops"])
                print(f"{named}: forward + backward {took} ms, {rate} TFLOP/s", flush=True)
            if options.json:
                bench.write_json(options.json, record)
    return 0


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
