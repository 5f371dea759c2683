"""How the interpreter tier judges a kernel; the GPU tier judges by the same rule.

Against the reference in fp64 on the same (rounded) inputs, a kernel may err at most twice as much
as PyTorch's own reference does in the kernel's dtype, plus one rounding of the largest entry.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.kernels.example_inputs import MAKERS, Shape

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETING else "cpu"
# The interpreter multiplies bf16 blocks wrongly (triton 3.6 to 3.9), so bf16 products are for GPUs.
DOT_DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def interpreter_problem(interpreting: bool, triton: str | None, numpy: str) -> str | None:
    """Why Triton's interpreter, these releases of it and of numpy, cannot run kernels here."""
    if not interpreting:
        return "needs TRITON_INTERPRET=1 from the start of the process: make test-interpret"
    if triton and _release(triton) <= (3, 6) and _release(numpy) >= (2, 4):
        return f"the interpreter of triton {triton} calls int(array), an error in numpy {numpy}"
    return None


def _release(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


_triton = importlib.metadata.version("triton") if find_spec("triton") else None
_problem = None
if DEVICE == "cpu":
    _problem = interpreter_problem(INTERPRETING, _triton, np.__version__)
interpreted = pytest.mark.skipif(_problem is not None, reason=_problem or "")


def example(op: str, **sizes: Any) -> list[Any]:
    """Arguments of ``op`` in order, from its maker; one frame and one head unless ``sizes`` say so,
    so that ``places`` are a clip's tokens and ``dim`` is their width."""
    with torch.device(DEVICE):
        return list(MAKERS[op](Shape(**{"frames": 1, "heads": 1, **sizes})).values())


def every_candidate(name: str) -> Iterator[None]:
    """Each candidate configuration of the tunable kernel ``name`` in force, one after another."""
    from kernel_resources import tunables

    from tats_fast.kernels.fused.launch import forced

    (candidates,) = (t.candidates for t, _ in tunables() if t.name == name)
    for config in candidates:
        with forced(name, config):
            yield


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
    inputs: Sequence[Any],
    dtype: torch.dtype,
    rounding: float = 2.0,
) -> None:
    """Compare ``op(*inputs)`` at level ``triton`` with the reference, output and every gradient,
    under random cotangents.

    Args:
        inputs: floating tensors get gradients where they require them; their strides are kept.
        rounding: allowed roundings of the largest entry on top of twice PyTorch's own error.
    """
    cotangents: list[Tensor] = []

    def run(level: str, wide: bool) -> dict[str, Tensor]:
        arguments = [_copy(x, torch.float64 if wide else None) for x in inputs]
        with kernels.use(level), poisoned():
            outputs = op(*arguments)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            floating = [out for out in outputs if out.requires_grad]
            if not cotangents:
                cotangents.extend(torch.randn(out.shape, device=out.device) for out in floating)
            wanted = {f"gradient {i}": x for i, x in enumerate(arguments) if _wants_gradient(x)}
            results = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
            if wanted:
                pairs = zip(floating, cotangents, strict=True)
                # Rounded to the kernel's dtype for all, so that all get the same numbers.
                seeds = [c.to(_narrow(out, dtype)).to(out.dtype) for out, c in pairs]
                grads = torch.autograd.grad(floating, list(wanted.values()), seeds)
                results |= dict(zip(wanted, grads, strict=True))
        return results

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


def _copy(x: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    # clone keeps the strides of a dense tensor only: views of a larger one are cut out again.
    if dtype is not None:
        copy = x.detach().to(dtype)
    else:
        copy = torch.empty_strided(
            (sum(s * (n - 1) for s, n in zip(x.stride(), x.shape, strict=True)) + 1,), (1,),
            dtype=x.dtype, device=x.device,
        ).as_strided(x.shape, x.stride())  # fmt: skip
        copy.copy_(x.detach())
    return copy.requires_grad_(x.requires_grad)


def _wants_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _narrow(out: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if out.dtype in (dtype, torch.float64) else out.dtype


def _error(actual: Tensor, exact: Tensor) -> float:
    return (actual.double() - exact).abs().max().item()
