"""One maker of random inputs per op, for tests, benchmarks and the compile tier.

A maker takes a ``Shape`` and returns the op's arguments by name, in order: tensors on PyTorch's
default device, those that get a gradient as leaves that require one, then what is no tensor.
Values have the spread that they have in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference import batch_rows

FLOOR = 0.05
RATIO_OPS = ("token_gather", "decoder_assemble", "masked_mse", "change_error")
"""Ops of visible or masked tokens, which ``visible`` and ``packed`` make a difference to."""
SHARED = ("weight_k", "weight_v", "bias_v", "mask_token", "positions")
"""Arguments without a dimension for clips."""


MAKERS: dict[str, Callable[..., dict[str, Any]]] = {}
"""Makers by op."""


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
    packed: bool = False
    """Clips differ in their number of visible tokens: in turn ``visible``, none, all."""

    @property
    def tokens(self) -> int:
        """N, of one clip."""
        return self.frames * self.places

    @property
    def width(self) -> int:
        """C of the encoder and the sampler."""
        return self.heads * self.dim

    def counts(self) -> list[int]:
        """Visible tokens of every clip."""
        per_clip = (self.visible, 0, self.tokens) if self.packed else (self.visible,)
        return [per_clip[b % len(per_clip)] for b in range(self.batch)]


def normal(*size: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """A leaf of normal numbers with deviation ``scale``, rounded to ``dtype``."""
    return (scale * torch.randn(size)).to(dtype).requires_grad_()


def _maker(function: Callable[[Shape], dict[str, Any]]) -> Callable[[Shape], dict[str, Any]]:
    MAKERS[function.__name__] = function
    return function


def _orders(shape: Shape) -> Tensor:
    """A random order of every clip's tokens, (B, N) int64."""
    return torch.rand(shape.batch, shape.tokens).argsort(dim=1)


def _chosen(shape: Shape, visible: bool) -> Tensor:
    """Indices of visible or masked tokens: (B, M), or (T,) rows of the batch if packed."""
    orders, counts = _orders(shape), shape.counts()
    if shape.packed:
        orders = batch_rows(orders, shape.tokens)
    parts = [o[:n] if visible else o[n:] for o, n in zip(orders, counts, strict=True)]
    return torch.cat(parts) if shape.packed else torch.stack(parts)


@_maker
def trajectory_attention(shape: Shape) -> dict[str, Any]:
    """See ``reference.trajectory_attention``, as for all makers."""
    qkv = normal(shape.batch, shape.tokens, 3, shape.heads, shape.dim, dtype=shape.dtype)
    return {"qkv": qkv, "frames": shape.frames}


@_maker
def trajectory_temporal(shape: Shape) -> dict[str, Any]:
    """Logits of deviation one."""
    batch, tokens, width, dtype = shape.batch, shape.tokens, shape.width, shape.dtype
    q2 = normal(batch, tokens, shape.heads, shape.dim, dtype=dtype, scale=shape.dim**-0.5)
    y = normal(batch, tokens, shape.frames, width, dtype=dtype)
    weights = {f"weight_{n}": normal(width, width, dtype=dtype, scale=width**-0.5) for n in "kv"}
    return {"q2": q2, "y": y, **weights, "bias_v": normal(width, dtype=dtype)}


@_maker
def token_gather(shape: Shape) -> dict[str, Any]:
    """Positions are not learned."""
    x = normal(shape.batch, shape.tokens, shape.width, dtype=shape.dtype)
    positions = normal(shape.tokens, shape.width).detach()
    return {"x": x, "index": _chosen(shape, visible=True), "positions": positions}


@_maker
def decoder_assemble(shape: Shape) -> dict[str, Any]:
    """Positions are not learned; packed, clip b's visible rows are at offsets[b]."""
    counts, width = torch.tensor(shape.counts()), shape.decoder_width
    rows = (int(counts.sum()),) if shape.packed else (shape.batch, shape.visible)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    return {
        "visible": normal(*rows, width, dtype=shape.dtype),
        "mask_token": normal(width),
        "positions": normal(shape.tokens, width).detach(),
        "order": _orders(shape),
        "offsets": offsets if shape.packed else None,
    }


@_maker
def masked_mse(shape: Shape) -> dict[str, Any]:
    """Pixels are bytes."""
    patches = torch.randint(256, (shape.batch, shape.tokens, shape.patch_dim), dtype=torch.uint8)
    index = _chosen(shape, visible=False)
    prediction = normal(*index.shape, shape.patch_dim, dtype=shape.dtype)
    return {"prediction": prediction, "patches": patches, "index": index}


@_maker
def change_error(shape: Shape) -> dict[str, Any]:
    """Tokens of two frames, or as many as their pixels allow; no gradient for the prediction."""
    prediction, patches, index = masked_mse(shape).values()
    arguments = {"prediction": prediction.detach(), "patches": patches, "index": index}
    frames = next(t for t in (2, 3, 1) if shape.patch_dim % (3 * t) == 0)
    return {**arguments, "tubelet_size": frames}


@_maker
def policy_logprob(shape: Shape) -> dict[str, Any]:
    """Logits that prefer some tokens."""
    return {"logits": normal(shape.batch, shape.tokens, dtype=shape.dtype, scale=3), "floor": FLOOR}


@_maker
def policy_sample(shape: Shape) -> dict[str, Any]:
    """The same logits with uniform numbers."""
    logits, floor = policy_logprob(shape).values()
    return {"logits": logits, "uniform": torch.rand(logits.shape), "floor": floor}
