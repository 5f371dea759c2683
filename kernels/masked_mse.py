"""Masked reconstruction error with fewer passes over the pixels than the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dispatch import register


@register("masked_mse", "torch")
def masked_mse_torch(prediction: Tensor, patches: Tensor, masked_index: Tensor) -> Tensor:
    """``reference.masked_mse``; normalises the masked patches only, in place."""
    return MaskedMSEFunction.apply(prediction, patches, masked_index)


class MaskedMSEFunction(torch.autograd.Function):
    """Keeps the difference (B, M, D) in fp32 or wider; its gradient is 2/D * difference * grad."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, patches: Tensor, masked_index: Tensor) -> Tensor:
        # Gathered as stored: one byte per pixel for uint8. The target does not change with the
        # pixels' scale, but for the 1e-6, which belongs to pixels in [0, 1].
        dim = patches.shape[-1]
        picked = patches.gather(1, masked_index[..., None].expand(-1, -1, dim))
        eps = 255e-6 if patches.dtype == torch.uint8 else 1e-6
        wide = torch.promote_types(prediction.dtype, torch.float32)
        if patches.dtype == torch.float64:
            wide = torch.float64
        target = picked.to(wide, copy=True).unflatten(-1, (-1, 3))
        variance, mean = torch.var_mean(target, dim=-2, keepdim=True)
        target.sub_(mean).mul_(1 / (variance.sqrt_() + eps))
        difference = target.flatten(-2).neg_().add_(prediction)
        ctx.save_for_backward(difference)
        ctx.dtype = prediction.dtype
        return torch.linalg.vector_norm(difference, dim=-1).square() / dim

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        scale = grad[..., None] * (2 / difference.shape[-1])
        return (difference * scale).to(ctx.dtype), None, None
