"""Attention as the formula has it, clip by clip, and how outputs and gradients compare."""

from __future__ import annotations

import torch
from torch import Tensor

HEADS = 3


LENGTHS = [[4], [1, 5, 2], [7, 1, 1, 3], [1, 1], [43, 78, 20]]


EXACT = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
}


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of one clip (N, h, d), as written."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hnm,mhd->nhd", scores.softmax(dim=-1), v)


def clip_by_clip(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], one=formula) -> Tensor:
    """``one`` on every clip of a packed batch (T, h, d)."""
    clips = (x.split(lengths) for x in (q, k, v))
    return torch.cat([one(*parts) for parts in zip(*clips, strict=True)])


def offsets_of(lengths: list[int], device: str = "cpu") -> Tensor:
    """(B + 1,) int32."""
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def projection(*shape: int, dim: int = 8, dtype=torch.float32, device: str = "cpu") -> Tensor:
    """A fused projection (..., 3, h, d), leaf of the graph."""
    x = torch.randn(*shape, 3, HEADS, dim, dtype=torch.float64).to(device, dtype)
    return x.requires_grad_()


def output_and_gradient(function, qkv: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """function(qkv) and the gradient of its product with ``cotangent``."""
    out = function(qkv)
    assert out.dtype == qkv.dtype
    (gradient,) = torch.autograd.grad(out, qkv, cotangent.to(out.dtype))
    return out.detach(), gradient


def distance(x: Tensor, exact: Tensor) -> Tensor:
    """Largest difference."""
    return (x - exact).abs().max()


def within_twice(x: Tensor, other: Tensor, exact: Tensor) -> bool:
    """Whether x is at most twice as far from ``exact`` as ``other``; plus its dtype's rounding."""
    rounding = torch.finfo(x.dtype).eps * exact.abs().max()
    return bool(distance(x, exact) <= 2 * distance(other, exact) + rounding)
