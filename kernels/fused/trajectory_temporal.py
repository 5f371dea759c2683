"""Temporal stage of trajectory attention with absorbed projections, forward and backward.

Maths, per token and head h, with W_k and W_v as (h, d, C); x, p and W stand for either side:
  scores    s_f = <W_h^T x_h, y_f>      forward (x = q2, W_k): a = softmax_f s;
                                        backward (x = g, W_v): dl_f = a_f (s_f - sum_f a_f s_f)
  project   W_h sum_f p_f y_f + b_h     out (p = a, W_v, b_v), and dq2 (p = dl, W_k, no bias)
  tokens    dy_f = sum_h a_f W_v,h^T g_h + dl_f W_k,h^T q2_h
  weights   dW_v,h = sum_i g_h (sum_f a_f y_f)^T,  dW_k,h = sum_i q2_h (sum_f dl_f y_f)^T
The first two are here, the others in ``trajectory_temporal_backward``. What holds N*h*C numbers,
q^ = W_k^T q2, z = sum_f a_f y_f and their gradients, lives in tiles on the chip only.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block; of
m token, h head, f frame, c channel of y, d of a head. Sizes: T = B*N tokens, h heads of d channels,
C = h*d, F frames. g is the gradient of the output, dl that of the logits, ^ and z as above.

What bounds all four kernels is the traffic from L2, where y is read again for each group of heads
and W for each tile of tokens (docs/kernels.md).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..composed import cast_for_autocast, trajectory_temporal_torch
from ..dispatch import register
from .launch import (
    Tunable,
    launch,
    load_block,
    power_of_2,
    supported,
    with_unit_stride,
)
from .trajectory_temporal_backward import grad_tokens, grad_weights
from .trajectory_temporal_tiles import (
    SLAB,
    fitted,
    heads_first,
    in_slabs,
    pack,
    packed,
    shape_constants,
    slab,
    tile,
)

# Measured on an H100: three groups of 4 heads in small programs, several per multiprocessor, beat
# two groups of 6 in large ones, although y is read once more through L2 (docs/kernels.md).
SCORES = Tunable(
    "trajectory_temporal_scores",
    (tile(32, 32, 4, 2), tile(32, 32, 4, 3), tile(64, 32, 8, 3)),
    {80: 0, 89: 0, 90: 0, 100: 0, 0: 0},
)
PROJECT = Tunable(
    "trajectory_temporal_project",
    (tile(32, 32, 4, 3), tile(64, 32, 8, 4), tile(32, 32, 4, 2)),
    {80: 0, 89: 2, 90: 0, 100: 0, 0: 2},
)
SLOTS = 4
"""Heads that a program has room for: 12 heads are three groups."""
LARGEST_DIM, MOST_FRAMES = 128, 32


@triton.jit
def _scores_kernel(
    x, w, y, a, out, out_a, out_dl,
    total, stride_x, stride_xh, stride_w,
    HEADS: tl.constexpr, DIM: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_F: tl.constexpr, PACK: tl.constexpr,
    BACKWARD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program holds x of BLOCK_M tokens and GROUP heads and runs along the channels of W and y.

    out (T, h, F) is a, or dl, from a; then out_a and out_dl are both in fp32, in slabs as
    ``_grad_tokens_kernel`` reads them.
    """
    groups = tl.cdiv(HEADS, GROUP)
    i_h = (tl.program_id(0) % groups) * GROUP  # neighbours share the tile of y, in L2
    i_m = (tl.program_id(0) // groups).to(tl.int64) * BLOCK_M
    last = (total - 1 - i_m).to(tl.int32)  # tokens past the last repeat it and are not stored
    o_m, o_h, o_f = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_F)
    o_c, o_d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    m_h = (o_h < GROUP) & (i_h + o_h < HEADS)
    m_d = o_d < DIM
    o_x = tl.minimum(o_m, last)[None, :, None] * stride_x + o_d[None, None, :]
    p_x = x + i_m * stride_x + (i_h + o_h)[:, None, None] * stride_xh + o_x
    b_x = tl.load(p_x, mask=m_h[:, None, None] & m_d[None, None, :], other=0.0)  # [H, M, D]
    o_w = ((i_h + o_h)[:, None, None] * DIM + o_d[None, :, None]) * stride_w + o_c[None, None, :]
    o_frame = tl.arange(0, PACK * BLOCK_F)[None, :, None] % BLOCK_F
    o_y = packed(last, BLOCK_M, PACK, BLOCK_F)[:, :, None] * (FRAMES * WIDTH)
    p_y = y + i_m * (FRAMES * WIDTH) + o_y + o_frame * WIDTH + o_c[None, None, :]
    b_s = tl.zeros([BLOCK_M // PACK, PACK * BLOCK_H, PACK * BLOCK_F], tl.float32)
    for i_c in tl.range(0, WIDTH, BLOCK_C):
        m_w = m_h[:, None, None]
        m_y = o_frame < FRAMES
        if BLOCK_D != DIM:
            m_w = m_w & m_d[None, :, None]
        if WIDTH % BLOCK_C != 0:
            m_w = m_w & (i_c + o_c < WIDTH)[None, None, :]
            m_y = m_y & (i_c + o_c < WIDTH)[None, None, :]
        b_w = tl.load(w + i_c + o_w, mask=m_w, other=0.0)  # [H, D, C]
        MASKED: tl.constexpr = BLOCK_F != FRAMES or WIDTH % BLOCK_C != 0
        b_y = load_block(p_y + i_c, m_y, MASKED)  # [M/P, P*F, C]
        b_hat = tl.dot(b_x, b_w, input_precision=PRECISION).to(b_y.dtype)  # [H, M, C]
        b_hat = tl.reshape(tl.permute(b_hat, (1, 0, 2)), [BLOCK_M // PACK, PACK * BLOCK_H, BLOCK_C])
        b_s = tl.dot(b_hat, tl.permute(b_y, (0, 2, 1)), b_s, input_precision=PRECISION)
    # Of each pack, keep the scores of tokens with their own frames.
    b_s = tl.reshape(b_s, [BLOCK_M // PACK, PACK, BLOCK_H, PACK, BLOCK_F])
    o_t = tl.arange(0, PACK)
    m_own = o_t[None, :, None, None, None] == o_t[None, None, None, :, None]
    b_s = tl.reshape(tl.sum(tl.where(m_own, b_s, 0.0), axis=3), [BLOCK_M, BLOCK_H, BLOCK_F])
    m_f = (o_f < FRAMES)[None, None, :]
    m_out = (o_m <= last)[:, None, None] & m_h[None, :, None] & m_f
    o_hf = (i_h + o_h)[None, :, None] * FRAMES + o_f[None, None, :]
    o_out = i_m * (HEADS * FRAMES) + (o_m[:, None, None] * (HEADS * FRAMES) + o_hf)
    if BACKWARD:
        b_a = tl.load(a + o_out, mask=m_out, other=0.0).to(tl.float32)  # [M, H, F]
        b_s = b_a * (b_s - tl.sum(b_a * b_s, axis=2)[:, :, None])
        o_slab = slab(i_m + o_m, HEADS, FRAMES)[:, None, None] + o_hf * SLAB
        tl.store(out_a + o_slab, b_a, mask=m_out)
        tl.store(out_dl + o_slab, b_s, mask=m_out)
    else:
        b_s = tl.where(m_f, b_s, float("-inf"))
        b_s = tl.exp(b_s - tl.max(b_s, axis=2)[:, :, None])
        b_s = b_s / tl.sum(b_s, axis=2)[:, :, None]
    tl.store(out + o_out, b_s.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def _project_kernel(
    p, w, y, bias, out,
    total, stride_w,
    HEADS: tl.constexpr, DIM: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_F: tl.constexpr, PACK: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (T, h, d) of BLOCK_M tokens and GROUP heads from weights of the frames, p (T, h, F)."""
    groups = tl.cdiv(HEADS, GROUP)
    i_h = (tl.program_id(0) % groups) * GROUP
    i_m = (tl.program_id(0) // groups).to(tl.int64) * BLOCK_M
    last = (total - 1 - i_m).to(tl.int32)
    o_m, o_h = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H)
    o_c, o_d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    m_h = (o_h < GROUP) & (i_h + o_h < HEADS)
    m_d = o_d < DIM
    # p as block-diagonal matrices, rows (token, head) by columns (token, frame).
    o_row, o_column = tl.arange(0, PACK * BLOCK_H), tl.arange(0, PACK * BLOCK_F)
    o_head, o_frame = o_row % BLOCK_H, o_column % BLOCK_F
    m_p = (o_row // BLOCK_H)[:, None] == (o_column // BLOCK_F)[None, :]
    m_p = m_p & ((o_head < GROUP) & (i_h + o_head < HEADS))[:, None] & (o_frame < FRAMES)[None, :]
    o_p = (i_h + o_head)[None, :, None] * FRAMES + o_frame[None, None, :]
    o_p += packed(last, BLOCK_M, PACK, BLOCK_H)[:, :, None] * (HEADS * FRAMES)
    b_p = tl.load(p + i_m * (HEADS * FRAMES) + o_p, mask=m_p[None], other=0.0)  # [M/P, P*H, P*F]
    o_w = ((i_h + o_h)[:, None, None] * DIM + o_d[None, None, :]) * stride_w + o_c[None, :, None]
    o_frame = o_frame[None, :, None]
    o_y = packed(last, BLOCK_M, PACK, BLOCK_F)[:, :, None] * (FRAMES * WIDTH)
    p_y = y + i_m * (FRAMES * WIDTH) + o_y + o_frame * WIDTH + o_c[None, None, :]
    b_out = tl.zeros([BLOCK_H, BLOCK_M, BLOCK_D], tl.float32)
    for i_c in tl.range(0, WIDTH, BLOCK_C):
        m_w = m_h[:, None, None]
        m_y = o_frame < FRAMES
        if BLOCK_D != DIM:
            m_w = m_w & m_d[None, None, :]
        if WIDTH % BLOCK_C != 0:
            m_w = m_w & (i_c + o_c < WIDTH)[None, :, None]
            m_y = m_y & (i_c + o_c < WIDTH)[None, None, :]
        b_w = tl.load(w + i_c + o_w, mask=m_w, other=0.0)  # [H, C, D]
        MASKED: tl.constexpr = BLOCK_F != FRAMES or WIDTH % BLOCK_C != 0
        b_y = load_block(p_y + i_c, m_y, MASKED)  # [M/P, P*F, C]
        b_z = tl.dot(b_p, b_y, input_precision=PRECISION).to(b_y.dtype)
        b_z = heads_first(b_z, BLOCK_M, BLOCK_H, BLOCK_C)
        b_out = tl.dot(b_z, b_w, b_out, input_precision=PRECISION)
    m_out = (o_m <= last)[None, :, None] & m_h[:, None, None] & m_d[None, None, :]
    o_out = (i_h + o_h)[:, None, None] * DIM + o_d[None, None, :]
    if HAS_BIAS:
        b_bias = tl.load(bias + o_out, mask=m_h[:, None, None] & m_d[None, None, :], other=0.0)
        b_out += b_bias.to(tl.float32)
    o_out += o_m[None, :, None] * (HEADS * DIM)
    tl.store(out + i_m * (HEADS * DIM) + o_out, b_out.to(out.dtype.element_ty), mask=m_out)


def _scores(
    x: Tensor, weight: Tensor, y: Tensor, a: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """x (T, h, d), weight (h*d, C), y (T, F, C) -> a (T, h, F); with a: dl, and both in slabs."""
    total, heads, dim = x.shape
    frames = y.shape[1]
    constants = shape_constants(heads, dim, frames, y.dtype)
    inner, block_f = constants["BLOCK_D"], power_of_2(frames)

    def need(rows: int, channels: int, slots: int, stages: int) -> tuple[int, int]:
        loaded = (slots * inner + rows * block_f) * channels
        sums = rows * slots * (pack(slots, frames) * block_f + channels)
        # Numbers of 32 bit are transposed through shared memory, 16-bit ones on their way.
        turned = rows * block_f * channels if y.element_size() == 4 else 0
        return (stages - 1) * loaded + slots * rows * (inner + channels) + turned, sums

    config, slots = fitted(SCORES, y, SLOTS, need)
    groups = triton.cdiv(heads, slots)
    out = y.new_empty(total, heads, frames)
    slabs = (out, out) if a is None else in_slabs(y, heads)
    launch(
        _scores_kernel, (groups * triton.cdiv(total, config.sizes["BLOCK_M"]),), config,
        x, weight, y, out if a is None else a, out, *slabs,
        total, *x.stride()[:2], weight.stride(0),
        GROUP=triton.cdiv(heads, groups), BLOCK_H=slots, BLOCK_F=block_f,
        PACK=pack(slots, frames), BACKWARD=a is not None, **constants,
    )  # fmt: skip
    return out, slabs


def _project(p: Tensor, weight: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    """p (T, h, F), weight (h*d, C), y (T, F, C), bias (h*d,) -> (T, h, d)."""
    total, heads, frames = p.shape
    dim = y.shape[2] // heads
    constants = shape_constants(heads, dim, frames, y.dtype)
    inner, block_f = constants["BLOCK_D"], power_of_2(frames)

    def need(rows: int, channels: int, slots: int, stages: int) -> tuple[int, int]:
        loaded = (slots * inner + rows * block_f) * channels
        resident = slots * rows * (pack(slots, frames) * block_f + channels)
        return (stages - 1) * loaded + resident, slots * rows * inner

    config, slots = fitted(PROJECT, y, SLOTS, need)
    groups = triton.cdiv(heads, slots)
    out = y.new_empty(total, heads, dim)
    launch(
        _project_kernel, (groups * triton.cdiv(total, config.sizes["BLOCK_M"]),), config,
        p, weight, y, out if bias is None else bias, out, total, weight.stride(0),
        GROUP=triton.cdiv(heads, groups), BLOCK_H=slots, BLOCK_F=block_f,
        PACK=pack(slots, frames), HAS_BIAS=bias is not None, **constants,
    )  # fmt: skip
    return out


@torch.library.custom_op("tats_fast::trajectory_temporal", mutates_args=())
def trajectory_temporal_fwd(
    q2: Tensor, y: Tensor, weight_k: Tensor, weight_v: Tensor, bias_v: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q2 (B, N, h, d), y (B, N, F, C) -> out (B, N, h*d) and, for the backward pass, a (T, h, F).

    a is rounded to y's dtype: these very numbers weight the values.
    """
    rows = with_unit_stride(q2).flatten(0, 1)
    tokens = y.contiguous().flatten(0, 1)
    a, _ = _scores(rows, with_unit_stride(weight_k), tokens, None)
    bias = None if bias_v is None else bias_v.contiguous()
    out = _project(a, with_unit_stride(weight_v), tokens, bias)
    return out.view(*q2.shape[:2], -1), a


@trajectory_temporal_fwd.register_fake
def _(q2: Tensor, y: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, dim = q2.shape
    a = y.new_empty(batch * tokens, heads, y.shape[2])
    return y.new_empty(batch, tokens, heads * dim), a


@torch.library.custom_op("tats_fast::trajectory_temporal_backward", mutates_args=())
def trajectory_temporal_bwd(
    grad: Tensor, q2: Tensor, y: Tensor, a: Tensor, weight_k: Tensor, weight_v: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad (B, N, h*d) and what the forward pass kept -> gradients of q2, y, weight_k, weight_v."""
    rows = q2.contiguous().flatten(0, 1)
    g = grad.contiguous().view_as(rows)
    tokens = y.contiguous().flatten(0, 1)
    weight_k, weight_v = with_unit_stride(weight_k), with_unit_stride(weight_v)
    dl, slabs = _scores(g, weight_v, tokens, a)
    dq2 = _project(dl, weight_k, tokens, None)
    dy = grad_tokens(rows, g, *slabs, tokens, weight_k, weight_v)
    dw_k, dw_v = grad_weights(rows, g, a, dl, tokens)
    return dq2.view(q2.shape), dy.view(y.shape), dw_k, dw_v


@trajectory_temporal_bwd.register_fake
def _(grad: Tensor, q2: Tensor, y: Tensor, a: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q2, y, *weights))


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q2, y, weight_k, weight_v, bias_v = inputs
    ctx.save_for_backward(q2, y, output[1], weight_k, weight_v)
    ctx.set_materialize_grads(False)
    ctx.has_bias = bias_v is not None


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    dq2, dy, dw_k, dw_v = trajectory_temporal_bwd(grad, *ctx.saved_tensors)
    return dq2, dy, dw_k, dw_v, grad.flatten(0, 1).sum(0) if ctx.has_bias else None


trajectory_temporal_fwd.register_autograd(_backward, setup_context=_setup)


@register("trajectory_temporal", "triton")
def trajectory_temporal(
    q2: Tensor, y: Tensor, weight_k: Tensor, weight_v: Tensor | None, bias_v: Tensor | None
) -> Tensor:
    """``reference.trajectory_temporal``; what the kernels do not take goes to the composed op."""
    heads, dim = q2.shape[2:]
    fits = dim <= LARGEST_DIM and y.shape[2] <= MOST_FRAMES and y.shape[3] == heads * dim
    inputs = cast_for_autocast(q2, y, weight_k, weight_v, bias_v)
    alike = len({x.dtype for x in inputs if x is not None}) == 1
    if weight_v is None or not fits or not alike or not supported(*inputs):
        return trajectory_temporal_torch(q2, y, weight_k, weight_v, bias_v)
    return trajectory_temporal_fwd(*inputs)[0]
