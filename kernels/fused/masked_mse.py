"""Reconstruction error against patch-normalised pixels, and error of the predicted change: gather,
normalise and compare in registers.

Maths, per masked token and channel over n = D/3 pixels x: d = x - x_0 (its first pixel),
z = d - mean(d), r = 1 / (sqrt(sum z^2 / (n - 1)) + eps), error = mean over D of (pred - r z)^2;
eps is 1e-6 for pixels in [0, 1], 255 times that for uint8. Backward, with m = x_0 + mean(d) and r
saved: d_pred = 2/D * g * (pred - r (x - m)).
Subtracting x_0 first keeps the deviation of a patch of one colour at an exact zero, whatever the
sum's order and the division's rounding; over eps their noise would be a target.
No target is in memory, nor are unmasked patches read.

Change, over the n - f pixels p that another frame's follow, f = n / tubelet_size further on, s the
deviation: error = sqrt(mean of (s (pred_{p+f} - pred_p) - (x_{p+f} - x_p))^2). It has no gradient.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block; of
b clip, m masked token of a clip, t of all, p pixel of a patch, d number of a patch, c channel.
Sizes: B clips, N tokens, M masked ones of a clip (a packed batch is one clip of M = T), T in all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import composed, reference
from ..dispatch import register
from .launch import DTYPES, Config, Tunable, launch, power_of_2, supported, with_unit_stride

# Warps per 512 pixels (a tubelet of 2 x 16 x 16). One warp sums by shuffles alone, without a
# barrier: at 4.3 TB/s an H200 has some 990 issue slots for a token's bytes, and this takes 830.
TYPICAL_PIXELS = 512
TOKEN = Tunable("masked_mse", (Config({}, 1, 1), Config({}, 2, 1), Config({}, 4, 1)), {0: 0})


@triton.jit
def _token(index, i_b, i_m, stride_ib, stride_im, tokens):
    """Row of the batch, b*N + i, of masked token i_m of clip i_b."""
    return i_b * tokens + tl.load(index + i_b * stride_ib + i_m * stride_im)


@triton.jit
def _pixel_tile(PIXELS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Channels [1, 4], offsets into a patch [BLOCK_P, 4] and mask of its pixels [BLOCK_P, 1].

    A power of two needs a fourth channel: it repeats the third, so that loads need no mask, and
    stores none either: two lanes write one number to one place. Eight pixels are 24 neighbouring
    numbers to a warp, so loads and stores use all they touch, and a channel's sum is a sum over
    one axis.
    """
    o_c = tl.minimum(tl.arange(0, 4), 2)[None, :]
    o_p = tl.arange(0, BLOCK_P)[:, None]
    return o_c, 3 * o_p + o_c, o_p < PIXELS


@triton.jit
def _over_pixels(b_tile, BLOCK_P: tl.constexpr):
    """Sum of a tile [BLOCK_P, 4] over pixels, [4], by halves down to 16 of them: one long chain of
    additions would gather more rounding, and make each addition wait for the one before."""
    if BLOCK_P > 16:
        b_half = tl.sum(tl.reshape(b_tile, (2, BLOCK_P // 2, 4)), 0)
        return _over_pixels(b_half, BLOCK_P // 2)
    else:
        return tl.sum(b_tile, 0)


@triton.jit
def _standardised(b_pixel, b_first, m_p, PIXELS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Pixels less the mean, [BLOCK_P, 4] and 0 where no pixel is; mean less the first pixel and
    deviation of each channel, [1, 4]."""
    b_delta = tl.where(m_p, b_pixel - b_first, 0.0)
    b_mean = _over_pixels(b_delta, BLOCK_P)[None, :] / PIXELS
    b_delta = tl.where(m_p, b_delta - b_mean, 0.0)
    b_variance = _over_pixels(b_delta * b_delta, BLOCK_P)[None, :] / (PIXELS - 1)
    return b_delta, b_mean, tl.sqrt(b_variance)


@triton.jit
def _masked_mse_fwd_kernel(
    prediction, patches, index, error, statistics,
    tokens, stride_pb, stride_pm, stride_x, stride_ib, stride_im,
    PIXELS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Program (m, b): error[b, m], and mean and 1 / (deviation + eps) of each channel."""
    i_m, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_t = i_b * tl.num_programs(0) + i_m
    o_c, o_d, m_p = _pixel_tile(PIXELS, BLOCK_P)
    p_prediction = prediction + i_b * stride_pb + i_m * stride_pm
    b_prediction = tl.load(p_prediction + o_d, mask=m_p, other=0)  # [BLOCK_P, 4]
    p_patch = patches + _token(index, i_b, i_m, stride_ib, stride_im, tokens) * stride_x
    b_pixel = tl.load(p_patch + o_d, mask=m_p, other=0).to(tl.float32)
    b_first = tl.load(p_patch + o_c).to(tl.float32)  # [1, 4]
    b_delta, b_mean, b_deviation = _standardised(b_pixel, b_first, m_p, PIXELS, BLOCK_P)
    eps: tl.constexpr = 255e-6 if patches.dtype.element_ty == tl.uint8 else 1e-6
    b_scale = 1 / (b_deviation + eps)
    b_difference = b_prediction.to(tl.float32) - b_delta * b_scale  # 0 where no pixel is
    b_squares = _over_pixels(b_difference * b_difference, BLOCK_P)  # [4]
    total = tl.sum(tl.where(tl.arange(0, 4) < 3, b_squares, 0.0), 0)
    tl.store(error + i_t, total / (3 * PIXELS))
    p_statistics = statistics + i_t * 6 + 2 * o_c
    tl.store(p_statistics, b_first + b_mean)
    tl.store(p_statistics + 1, b_scale)


@triton.jit
def _masked_mse_bwd_kernel(
    grad, prediction, patches, index, statistics, grad_prediction,
    tokens, stride_gb, stride_gm, stride_pb, stride_pm, stride_x, stride_ib, stride_im,
    PIXELS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Program (m, b) writes row (b, m) of grad_prediction (B, M, D)."""
    i_m, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_t = i_b * tl.num_programs(0) + i_m
    o_c, o_d, m_p = _pixel_tile(PIXELS, BLOCK_P)
    p_prediction = prediction + i_b * stride_pb + i_m * stride_pm
    b_prediction = tl.load(p_prediction + o_d, mask=m_p, other=0)  # [BLOCK_P, 4]
    p_patch = patches + _token(index, i_b, i_m, stride_ib, stride_im, tokens) * stride_x
    b_pixel = tl.load(p_patch + o_d, mask=m_p, other=0).to(tl.float32)
    p_statistics = statistics + i_t * 6 + 2 * o_c
    b_mean, b_scale = tl.load(p_statistics), tl.load(p_statistics + 1)  # [1, 4]
    factor = tl.load(grad + i_b * stride_gb + i_m * stride_gm) * (2 / (3 * PIXELS))
    b_grad = factor * (b_prediction.to(tl.float32) - (b_pixel - b_mean) * b_scale)
    tl.store(grad_prediction + i_t * (3 * PIXELS) + o_d, b_grad.to(b_prediction.dtype), mask=m_p)


@triton.jit
def _change_error_kernel(
    prediction, patches, index, error,
    tokens, stride_pb, stride_pm, stride_x, stride_ib, stride_im,
    PIXELS: tl.constexpr, BLOCK_P: tl.constexpr, FRAME: tl.constexpr,
):  # fmt: skip
    """Program (m, b): error[b, m]; a frame has FRAME pixels. The next frame's are in the cache."""
    i_m, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_c, o_d, m_p = _pixel_tile(PIXELS, BLOCK_P)
    _, _, m_next = _pixel_tile(PIXELS - FRAME, BLOCK_P)
    p_patch = patches + _token(index, i_b, i_m, stride_ib, stride_im, tokens) * stride_x
    b_pixel = tl.load(p_patch + o_d, mask=m_p, other=0).to(tl.float32)  # [BLOCK_P, 4]
    b_first = tl.load(p_patch + o_c).to(tl.float32)  # [1, 4]
    _, _, b_deviation = _standardised(b_pixel, b_first, m_p, PIXELS, BLOCK_P)
    p_prediction = prediction + i_b * stride_pb + i_m * stride_pm
    b_now = tl.load(p_prediction + o_d, mask=m_next, other=0).to(tl.float32)
    b_next = tl.load(p_prediction + o_d + 3 * FRAME, mask=m_next, other=0).to(tl.float32)
    b_pixel_next = tl.load(p_patch + o_d + 3 * FRAME, mask=m_next, other=0).to(tl.float32)
    b_wrong = tl.where(m_next, (b_next - b_now) * b_deviation - (b_pixel_next - b_pixel), 0.0)
    b_squares = _over_pixels(b_wrong * b_wrong, BLOCK_P)  # [4]
    total = tl.sum(tl.where(tl.arange(0, 4) < 3, b_squares, 0.0), 0)
    white: tl.constexpr = 255 if patches.dtype.element_ty == tl.uint8 else 1
    i_t = i_b * tl.num_programs(0) + i_m
    tl.store(error + i_t, tl.sqrt(total / (3 * (PIXELS - FRAME))) / white)


def _launch_per_token(kernel: Any, index: Tensor, dim: int, *args: Any, **constants: int) -> None:
    block = power_of_2(dim // 3)
    config = TOKEN.config(index.device)
    config = replace(config, num_warps=min(16, config.num_warps * max(1, block // TYPICAL_PIXELS)))
    sizes = {"PIXELS": dim // 3, "BLOCK_P": block, **constants}
    launch(kernel, index.shape[::-1], config, *args, **sizes)


def _outputs(prediction: Tensor, patches: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    error = prediction.new_empty(index.shape, dtype=torch.float32)
    return error, error.new_empty(*index.shape, 3, 2)


@torch.library.custom_op("tats_fast::masked_mse", mutates_args=())
def masked_mse_fwd(prediction: Tensor, patches: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """prediction (B, M, D), patches (B, N, D), index (B, M) int64, or all masked tokens as one clip
    and index their rows of the batch -> error (B, M), statistics (B, M, 3, 2), both fp32."""
    dim = patches.shape[-1]
    assert dim % 3 == 0 and prediction.shape == (*index.shape, dim)
    prediction = with_unit_stride(prediction)
    rows = with_unit_stride(patches.reshape(-1, dim))
    error, statistics = _outputs(prediction, patches, index)
    _launch_per_token(
        _masked_mse_fwd_kernel, index, dim,
        prediction, rows, index, error, statistics,
        patches.shape[1], *prediction.stride()[:2], rows.stride(0), *index.stride(),
    )  # fmt: skip
    return error, statistics


@torch.library.custom_op("tats_fast::masked_mse_backward", mutates_args=())
def masked_mse_bwd(
    grad: Tensor, prediction: Tensor, patches: Tensor, index: Tensor, statistics: Tensor
) -> Tensor:
    """grad (B, M) and what the forward had and gave -> (B, M, D) in prediction's dtype."""
    dim = patches.shape[-1]
    prediction = with_unit_stride(prediction)
    rows = with_unit_stride(patches.reshape(-1, dim))
    grad_prediction = prediction.new_empty(prediction.shape)
    _launch_per_token(
        _masked_mse_bwd_kernel, index, dim,
        grad, prediction, rows, index, statistics, grad_prediction,
        patches.shape[1], *grad.stride(), *prediction.stride()[:2], rows.stride(0), *index.stride(),
    )  # fmt: skip
    return grad_prediction


masked_mse_bwd.register_fake(lambda _, prediction, *__: prediction.new_empty(prediction.shape))


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return masked_mse_bwd(grad, *ctx.saved_tensors), None, None


masked_mse_fwd.register_fake(_outputs)
masked_mse_fwd.register_autograd(_backward, setup_context=_setup)


@register("masked_mse", "triton")
def masked_mse(prediction: Tensor, patches: Tensor, index: Tensor) -> Tensor:
    """``reference.masked_mse``."""
    if not supported(prediction) or patches.dtype not in (torch.uint8, *DTYPES):
        return composed.masked_mse_torch(prediction, patches, index)
    if index.ndim == 2:
        return masked_mse_fwd(prediction, patches, index)[0]
    return masked_mse_fwd(prediction[None], patches, index[None])[0][0]


@torch.library.custom_op("tats_fast::change_error", mutates_args=())
def change_error_fwd(
    prediction: Tensor, patches: Tensor, index: Tensor, tubelet_size: int
) -> Tensor:
    """prediction, patches and index as ``masked_mse_fwd`` takes them -> error (B, M), fp32."""
    dim = patches.shape[-1]
    assert dim % (3 * tubelet_size) == 0 and prediction.shape == (*index.shape, dim)
    prediction = with_unit_stride(prediction)
    rows = with_unit_stride(patches.reshape(-1, dim))
    error = prediction.new_empty(index.shape, dtype=torch.float32)
    _launch_per_token(
        _change_error_kernel, index, dim,
        prediction, rows, index, error,
        patches.shape[1], *prediction.stride()[:2], rows.stride(0), *index.stride(),
        FRAME=dim // 3 // tubelet_size,
    )  # fmt: skip
    return error


change_error_fwd.register_fake(
    lambda prediction, patches, index, tubelet_size: prediction.new_empty(
        index.shape, dtype=torch.float32
    )
)


@register("change_error", "triton")
def change_error(prediction: Tensor, patches: Tensor, index: Tensor, tubelet_size: int) -> Tensor:
    """``reference.change_error``."""
    takes = supported(prediction) and patches.dtype in (torch.uint8, *DTYPES)
    if not takes or tubelet_size == 1:
        return reference.change_error(prediction, patches, index, tubelet_size)
    prediction = prediction.detach()
    if index.ndim == 2:
        return change_error_fwd(prediction, patches, index, tubelet_size)
    return change_error_fwd(prediction[None], patches, index[None], tubelet_size)[0]
