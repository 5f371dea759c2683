"""Ops composed from PyTorch's own, without custom kernels: the CPU default, the bar for Triton.

Trajectory attention: two exact rewrites of the reference (docs/method.md, "Two rewrites"):
(a) the spatial softmax runs over one frame's P keys, so the stage is F ordinary attentions that
    share q, and no N x N map needs to exist;
(b) <q2, W_k y> = <W_k^T q2, y> and sum_f a_f (W_v y_f + b_v) = W_v (sum_f a_f y_f) + b_v, so the
    projections act on N tokens instead of N*F trajectory tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .dispatch import register
from .reference import batch_rows, own_frame

# Rows of q^ and z that exist at a time (tokens); a few hundred keep them in a CPU's cache, and a
# GPU wants launches as large as they come.
CPU_CHUNK = 392
PIXEL_ROWS = 128
"""Patches that a CPU holds in fp32 at a time."""


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by two matrix products and a softmax.

    Args:
        q: (B, h, N, d); k, v: (B, h, M, d).
        mask: (B, 1, 1, M), true for keys that exist; None = all do.

    Returns:
        (B, h, N, d).
    """
    # The factor on k: on the N x M scores it would be a pass more in each direction.
    scores = q @ (k * q.shape[-1] ** -0.5).mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def fastest_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """``plain_attention`` in whichever of PyTorch's ways is fastest: SDPA, but for bf16 on a CPU,
    where the backward pass of its kernel takes 1.3 to 7 times as long as the plain products."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return plain_attention(q, k, v, mask)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


@register("trajectory_attention", "torch")
def trajectory_attention_torch(qkv: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """``reference.trajectory_attention`` by one attention per key frame."""
    q, k, v = qkv.unbind(2)
    batch, tokens, heads, dim = q.shape
    queries = q.transpose(1, 2)
    per_frame = [
        fastest_attention(queries, k_frame.transpose(1, 2), v_frame.transpose(1, 2))
        for k_frame, v_frame in zip(k.chunk(frames, dim=1), v.chunk(frames, dim=1), strict=True)
    ]
    # Straight into the layout of the next stage: one copy, and views on the way back.
    stacked = torch.stack([out.transpose(1, 2) for out in per_frame], dim=2)
    return OwnFrameFunction.apply(stacked.view(batch, tokens, frames, heads * dim))


class OwnFrameFunction(torch.autograd.Function):
    """Each token's entry for its own frame, beside y itself.

    Returning y as well lets its backward hold both gradients and add one of them, an F-th of the
    other's size, in place: no zero-filled second gradient of y.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        return y.view_as(y), own_frame(y)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_own: Tensor) -> Tensor:
        # Overwrites a contiguous gradient: that of the temporal stage, allocated for this node
        # alone. y must have no other consumer, and a caller's own gradient is not kept.
        grad_y = grad_y if grad_y.is_contiguous() else grad_y.contiguous()
        frames = grad_y.shape[2]
        diagonal = grad_y.unflatten(1, (frames, -1)).diagonal(dim1=1, dim2=3)
        diagonal.add_(grad_own.unflatten(1, (frames, -1)).permute(0, 2, 3, 1))
        return grad_y


@register("trajectory_temporal", "torch")
def trajectory_temporal_torch(
    q2: Tensor, y: Tensor, weight_k: Tensor, weight_v: Tensor | None, bias_v: Tensor | None
) -> Tensor:
    """``reference.trajectory_temporal`` with absorbed projections."""
    inputs = cast_for_autocast(q2, y, weight_k, weight_v, bias_v)
    return TrajectoryTemporalFunction.apply(*inputs)


def cast_for_autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as autocast would for a matrix product: custom functions and ops see raw dtypes."""
    device = next(t for t in tensors if t is not None).device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


class TrajectoryTemporalFunction(torch.autograd.Function):
    """Absorbed temporal stage. Keeps q2, y and the attention a; recomputes q^ and z.

    q^ and z hold N*h*C numbers each, 28.9 MB per clip at ViT-B in 16 bit: as saved activations
    they would cost more than the rewrite saves.

    Shapes inside, for n tokens of a chunk: q2 (h, n, d), q^ and z (h, n, C), y (n, F, C),
    a (n, h, F); W_k and W_v as (h, d, C).
    """

    @staticmethod
    def forward(
        ctx: Any, q2: Tensor, y: Tensor, weight_k: Tensor, weight_v: Tensor | None, bias_v: Any
    ) -> Tensor:
        batch, tokens, heads, dim = q2.shape
        width = y.shape[-1]
        w_k = weight_k.unflatten(0, (heads, dim))
        w_v = None if weight_v is None else weight_v.unflatten(0, (heads, dim))
        flat_q2, flat_y = q2.flatten(0, 1), y.flatten(0, 1)
        out = q2.new_empty(batch * tokens, heads, dim)
        attention = q2.new_empty(batch * tokens, heads, y.shape[2])
        for rows in _chunks(batch * tokens, q2.device.type):
            y_c = flat_y[rows]
            q_hat = torch.bmm(flat_q2[rows].transpose(0, 1), w_k)
            logits = torch.bmm(q_hat.transpose(0, 1), y_c.mT)
            a = attention[rows] = logits.softmax(-1)  # sums in fp32 for 16-bit logits too
            if w_v is None:
                out[rows] = torch.einsum("nhf,nfhd->nhd", a, y_c.unflatten(-1, (heads, dim)))
            else:
                z = torch.bmm(a, y_c).transpose(0, 1)
                out[rows] = torch.bmm(z, w_v.mT).transpose(0, 1)
        if bias_v is not None:
            out += bias_v.view(heads, dim)
        ctx.save_for_backward(q2, y, attention, weight_k, weight_v)
        ctx.has_bias = bias_v is not None
        assert width == weight_k.shape[1]
        return out.view(batch, tokens, heads * dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q2, y, attention, weight_k, weight_v = ctx.saved_tensors
        heads, dim = q2.shape[2:]
        w_k = weight_k.unflatten(0, (heads, dim))
        w_v = None if weight_v is None else weight_v.unflatten(0, (heads, dim))
        flat_grad = grad.reshape(-1, heads, dim)
        flat_q2, flat_y = q2.flatten(0, 1), y.flatten(0, 1)
        grad_q2, grad_y = torch.empty_like(flat_q2), torch.empty_like(flat_y)
        # Weight gradients add up over chunks, so they are kept in fp32 or wider.
        wide = torch.promote_types(w_k.dtype, torch.float32)
        grad_wk = torch.zeros_like(w_k, dtype=wide)
        grad_wv = None if w_v is None else torch.zeros_like(w_v, dtype=wide)
        for rows in _chunks(flat_q2.shape[0], q2.device.type):
            g, y_c, a = flat_grad[rows], flat_y[rows], attention[rows]
            q_c = flat_q2[rows].transpose(0, 1)
            q_hat = torch.bmm(q_c, w_k).transpose(0, 1)  # (n, h, C)
            if w_v is None:
                heads_of_y = y_c.unflatten(-1, (heads, dim))
                grad_a = torch.einsum("nhd,nfhd->nhf", g, heads_of_y)
                grad_value = torch.einsum("nhf,nhd->nfhd", a, g).flatten(-2)
                grad_logits = _softmax_backward(grad_a, a)
                grad_y[rows] = grad_value + torch.bmm(grad_logits.mT, q_hat)
            else:
                grad_z = torch.bmm(g.transpose(0, 1), w_v).transpose(0, 1)  # (n, h, C)
                grad_a = torch.bmm(grad_z, y_c.mT)
                grad_logits = _softmax_backward(grad_a, a)
                # dy = a^T dz + dlogits^T q^
                grad_y[rows] = torch.baddbmm(torch.bmm(a.mT, grad_z), grad_logits.mT, q_hat)
                z = torch.bmm(a, y_c).transpose(0, 1)  # (h, n, C)
                grad_wv += torch.bmm(g.permute(1, 2, 0), z)
            grad_q_hat = torch.bmm(grad_logits, y_c).transpose(0, 1)  # (h, n, C)
            grad_q2[rows] = torch.bmm(grad_q_hat, w_k.mT).transpose(0, 1)
            grad_wk += torch.bmm(q_c.mT, grad_q_hat)
        return (
            grad_q2.view_as(q2),
            grad_y.view_as(y),
            grad_wk.flatten(0, 1).to(weight_k.dtype),
            None if grad_wv is None else grad_wv.flatten(0, 1).to(weight_v.dtype),
            flat_grad.flatten(1).sum(0) if ctx.has_bias else None,
        )


def _softmax_backward(grad: Tensor, probability: Tensor) -> Tensor:
    return probability * (grad - (grad * probability).sum(-1, keepdim=True))


def _chunks(rows: int, device_type: str, cpu: int = CPU_CHUNK) -> list[slice]:
    step = cpu if device_type == "cpu" else max(rows, 1)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


@register("masked_mse", "torch")
def masked_mse_torch(prediction: Tensor, patches: Tensor, index: Tensor) -> Tensor:
    """``reference.masked_mse``; normalises the masked patches only, in place."""
    return MaskedMSEFunction.apply(prediction, patches, index)


class MaskedMSEFunction(torch.autograd.Function):
    """Keeps the difference in fp32 or wider; its gradient is 2/D * difference * grad."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, patches: Tensor, index: Tensor) -> Tensor:
        # The target does not change with the pixels' scale, but for the 1e-6, which belongs to
        # pixels in [0, 1].
        eps = 255e-6 if patches.dtype == torch.uint8 else 1e-6
        dim = patches.shape[-1]
        flat = prediction.reshape(-1, dim)
        difference = flat.new_empty(flat.shape, dtype=_wide(prediction, patches))
        for rows, pixels, deviation in _centred_pixels(patches, index, difference.dtype):
            difference[rows] = flat[rows] - pixels.mul_(1 / (deviation + eps)).flatten(-2)
        ctx.save_for_backward(difference)
        ctx.dtype = prediction.dtype
        return (torch.linalg.vector_norm(difference, dim=-1).square() / dim).view(index.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        scale = grad[..., None] * (2 / difference.shape[-1])
        return (difference.view(*grad.shape, -1) * scale).to(ctx.dtype), None, None


@register("change_error", "torch")
def change_error_torch(
    prediction: Tensor, patches: Tensor, index: Tensor, tubelet_size: int
) -> Tensor:
    """``reference.change_error``; takes the frames' differences first, which are fewer."""
    flat = prediction.detach().reshape(-1, patches.shape[-1])
    out = flat.new_zeros(len(flat), dtype=_wide(prediction, patches))
    if tubelet_size == 1:
        return out.view(index.shape)
    white = 255 if patches.dtype == torch.uint8 else 1
    frames = (tubelet_size, -1)
    for rows, pixels, deviation in _centred_pixels(patches, index, out.dtype):
        wrong = flat[rows].to(out.dtype).unflatten(-1, (*frames, 3)).diff(dim=-3)
        wrong.mul_(deviation.unsqueeze(-2)).sub_(pixels.unflatten(-2, frames).diff(dim=-3))
        count = wrong.shape[-3] * wrong.shape[-2] * wrong.shape[-1]
        out[rows] = torch.linalg.vector_norm(wrong, dim=(-3, -2, -1)) / (white * count**0.5)
    return out.view(index.shape)


def _wide(prediction: Tensor, patches: Tensor) -> torch.dtype:
    """fp32 or wider."""
    wide = torch.promote_types(patches.dtype, torch.float32)
    return torch.promote_types(prediction.dtype, wide)


def _centred_pixels(
    patches: Tensor, index: Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The picked patches' pixels less their mean, (rows, D/3, 3) in ``dtype``, and the unbiased
    deviation (rows, 1, 3) of each channel, in the patches' own unit; as many rows at a time as a
    CPU's cache holds.

    By sums, in two passes: over pixels of three numbers PyTorch's ``var_mean`` is not vectorised,
    and takes four times as long on a CPU.
    """
    flat, picked = patches.flatten(0, 1), batch_rows(index, patches.shape[1]).flatten()
    for rows in _chunks(len(picked), patches.device.type, PIXEL_ROWS):
        # Gathered as stored: one byte per pixel for uint8.
        pixels = flat[picked[rows]].to(dtype, copy=True).unflatten(-1, (-1, 3))
        if patches.dtype != torch.uint8:
            # Sums of bytes are exact. Fractions are not: of one colour they must still give zeros.
            pixels.sub_(pixels[..., :1, :].clone())
        pixels.sub_(pixels.mean(dim=-2, keepdim=True))
        variance = pixels.square().sum(dim=-2, keepdim=True) / (pixels.shape[-2] - 1)
        yield rows, pixels, variance.sqrt()
