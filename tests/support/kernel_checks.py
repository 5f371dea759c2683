"""How the interpreter tier judges a kernel; the GPU tier judges by the same rule.

Against the reference in fp64 on the same (rounded) inputs, a kernel may err at most twice as much
as PyTorch's own reference does in the kernel's dtype, plus one rounding of the largest entry.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tats_fast import kernels

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETING else "cpu"
# The interpreter multiplies bf16 blocks wrongly (triton 3.6 to 3.9), so bf16 products are for GPUs.
DOT_DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

interpreted = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETING,
    reason="needs TRITON_INTERPRET=1 from the start of the process: make test-interpret",
)


@contextmanager
def poisoned():
    """Fresh memory holds NaN, so that an entry nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check(
    op: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    dtype: torch.dtype,
    *arguments: object,
    rounding: float = 2.0,
) -> None:
    """Compare ``op(*inputs, *arguments)`` at level ``triton`` with the reference, output and every
    gradient, under random cotangents.

    Args:
        inputs: floating ones get gradients where they require them; their strides are kept.
        rounding: allowed roundings of the largest entry on top of twice PyTorch's own error.
    """
    cotangents: list[Tensor] = []

    def run(level: str, wide: bool) -> dict[str, Tensor]:
        given = [_copy(x, torch.float64 if wide else None) for x in inputs]
        with kernels.use(level), poisoned():
            outputs = op(*given, *arguments)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            floating = [out for out in outputs if out.requires_grad]
            if not cotangents:
                cotangents.extend(torch.randn(out.shape, device=out.device) for out in floating)
            wanted = {f"gradient {i}": x for i, x in enumerate(given) if _wants_gradient(x)}
            found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
            if wanted:
                pairs = zip(floating, cotangents, strict=True)
                # Rounded to the kernel's dtype for all, so that all get the same numbers.
                seeds = [c.to(_narrow(out, dtype)).to(out.dtype) for out, c in pairs]
                grads = torch.autograd.grad(floating, list(wanted.values()), seeds)
                found |= dict(zip(wanted, grads, strict=True))
        return found

    truth, own, ours = run("reference", True), run("reference", False), run("triton", False)
    for name, exact in truth.items():
        assert ours[name].dtype == own[name].dtype, name
        assert ours[name].shape == own[name].shape, name
        if not exact.is_floating_point():
            assert torch.equal(ours[name], own[name]), name
            continue
        assert ours[name].isfinite().all(), f"{name}: entries that are not finite"
        size = exact.abs().max().item()
        limit = 2 * _error(own[name], exact) + rounding * torch.finfo(own[name].dtype).eps * size
        error = _error(ours[name], exact)
        assert error <= limit, f"{name}: error {error:.2e}, allowed {limit:.2e} of {size:.2e}"


def _copy(x: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    if x is None or not x.is_floating_point():
        return x
    # clone keeps the strides of a dense tensor only: views of a larger one are cut out again.
    whole = x.detach()
    if dtype is not None:
        copy = whole.to(dtype)
    else:
        copy = torch.empty_strided(
            (sum(s * (n - 1) for s, n in zip(x.stride(), x.shape, strict=True)) + 1,), (1,),
            dtype=x.dtype, device=x.device,
        ).as_strided(x.shape, x.stride())  # fmt: skip
        copy.copy_(whole)
    return copy.requires_grad_(x.requires_grad)


def _wants_gradient(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad


def _narrow(out: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if out.dtype in (dtype, torch.float64) else out.dtype


def _error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).abs().max().item()
