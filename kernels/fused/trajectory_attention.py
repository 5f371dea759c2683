"""Spatial stage of trajectory attention: one softmax per key frame, without the N x N map.

Maths, for query i and key frame f, with c = d^-1/2 log2(e) and f(i) = i // P:
  forward   s = c <q_i, k_fs>,  L[i,f] = log2 sum_s 2^s,  p = 2^(s - L),
            y[i,f] = sum_s p v_fs,  own[i] = y[i, f(i)]
  backward  do[i,f] = dy[i,f] + [f = f(i)] down[i],  delta[i,f] = <do[i,f], y[i,f]>,
            ds = p (<do[i,f], v_fs> - delta[i,f]),  dq_i = d^-1/2 sum_fs ds k_fs,
            dk_fs = d^-1/2 sum_i ds q_i,  dv_fs = sum_i p do[i,f]
Patrick et al. 2021, section 3; saved are L, y and the input. Products are of the input's dtype,
sums fp32.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block;
of b clip, h head, f frame, m query, n key of a tile, s place of a key in its frame, d channel, t
tile. Sizes: B clips, F frames of P places, N = F*P tokens, h heads of d channels, C = h*d.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..composed import cast_for_autocast, trajectory_attention_torch
from ..dispatch import register
from .launch import Tunable, launch, load_block, supported, with_unit_stride
from .trajectory_attention_backward import trajectory_attention_bwd
from .trajectory_attention_tiles import (
    LOG2E,
    PADDING,
    batch_and_head,
    config_for,
    key_tiles,
    rows_of,
    store_rows,
    tile,
)

# 128 registers and 80 KiB on sm_90: two programs, four warpgroups per multiprocessor, so that one
# exponentiates while another multiplies; 128 queries halve what 64 would read through L2.
FORWARD = Tunable(
    "trajectory_attention_fwd",
    (tile(128, 64, 8, 3), tile(64, 64, 4, 3), tile(64, 64, 4, 2)),
    {80: 0, 89: 2, 90: 0, 100: 0, 0: 2},
)


@triton.jit
def _attend(
    b_q, b_k, b_v, b_max, b_sum, b_acc, scale, o_s, places,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys into the running softmax: maximum and sum [BLOCK_M], sum of p v."""
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    if MASKED:
        b_s = tl.where(o_s[None, :] < places, b_s, float("-inf"))
    # c > 0 is applied to the fp32 scores, in the same instruction as the subtraction: scaling q
    # beforehand would save nothing and round it once more.
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)
    b_p = tl.exp2(b_s * scale - b_new[:, None])
    b_alpha = tl.exp2(b_max - b_new)
    b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)
    return b_new, b_sum, b_acc


@triton.jit
def _trajectory_attention_fwd_kernel(
    qkv, y, own, lse,
    tokens, places, frames, heads, rows, scale, stride_b, stride_n, stride_3, stride_h,
    DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    TILES: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Program (m, b*h + h): BLOCK_M queries of one head against all frames.

    One flat loop over the key tiles of all frames, so that a frame's first tile is fetched while
    the frame before it is worked on. RAGGED: P < 16, a frame is one masked tile.
    """
    i_b, i_h = batch_and_head(heads)
    width = heads * DIM
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < tokens
    o_row = tl.minimum(o_m, tokens - 1)  # a second copy of the last query rather than a mask
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d[None, :] < DIM
    o_n = tl.arange(0, BLOCK_N)
    qkv += i_b * stride_b + i_h * stride_h
    y += i_b * tokens * frames * width + i_h * DIM
    own += i_b * tokens * width + i_h * DIM
    lse += (i_b * heads + i_h) * frames * rows
    b_q = load_block(rows_of(qkv, o_row, stride_n, o_d), m_d, PADDED)
    p_k = rows_of(qkv + stride_3, tl.minimum(o_n, places - 1), stride_n, o_d)
    p_y = rows_of(y, o_row, frames * width, o_d)
    if BLOCK_TAIL > 0:
        o_tail = TILES * BLOCK_N + tl.arange(0, BLOCK_TAIL)
        p_k_tail = rows_of(qkv + stride_3, tl.minimum(o_tail, places - 1), stride_n, o_d)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i_t in range(0, frames * TILES):
        i_f, i_s = i_t // TILES, i_t % TILES
        last = i_s == TILES - 1
        p_tile = p_k + (i_f * places + i_s * BLOCK_N) * stride_n
        b_k = load_block(p_tile, m_d, PADDED)
        b_v = load_block(p_tile + stride_3, m_d, PADDED)
        if BLOCK_TAIL > 0:  # asked for now, there when the branch below wants them
            p_tail = p_k_tail + i_f * places * stride_n
            b_k_tail = load_block(p_tail, m_d & last, True)
            b_v_tail = load_block(p_tail + stride_3, m_d & last, True)
        # A select, where a branch or a reset at the end of the frame would stop the tensor cores
        # from running ahead (ptxas then waits after every wgmma).
        b_max = tl.where(i_s == 0, float("-inf"), b_max)
        b_sum = tl.where(i_s == 0, 0.0, b_sum)
        b_acc = tl.where(i_s == 0, 0.0, b_acc)
        b_max, b_sum, b_acc = _attend(
            b_q, b_k, b_v, b_max, b_sum, b_acc, scale * LOG2E, o_n, places, RAGGED, PRECISION
        )
        if last:
            b_end, b_total, b_out = b_max, b_sum, b_acc
            if BLOCK_TAIL > 0:
                b_end, b_total, b_out = _attend(
                    b_q, b_k_tail, b_v_tail, b_end, b_total, b_out, scale * LOG2E, o_tail, places,
                    True, PRECISION,
                )  # fmt: skip
            b_y = (b_out * (1.0 / b_total)[:, None]).to(y.dtype.element_ty)
            store_rows(p_y + i_f * width, b_y, m_m, m_d, PADDED)
            store_rows(
                rows_of(own, o_row, width, o_d), b_y, m_m & (o_row // places == i_f), m_d, PADDED
            )
            tl.store(lse + i_f * rows + o_m, b_end + tl.log2(b_total), mask=m_m)


def _outputs(qkv: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, _, heads, dim = qkv.shape
    y = qkv.new_empty(batch, tokens, frames, heads * dim)
    rows = (tokens + PADDING - 1) // PADDING * PADDING
    lse = qkv.new_full((batch, heads, frames, rows), float("inf"), dtype=torch.float32)
    return y, qkv.new_empty(batch, tokens, heads * dim), lse


@torch.library.custom_op("tats_fast::trajectory_attention", mutates_args=())
def trajectory_attention_fwd(qkv: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, N, 3, h, d) -> y (B, N, F, C), own (B, N, C), lse (B, h, F, N padded)."""
    batch, tokens, _, heads, dim = qkv.shape
    qkv = with_unit_stride(qkv)
    y, own, lse = _outputs(qkv, frames)
    config = config_for(FORWARD, qkv)
    sizes = key_tiles(config, qkv, frames)
    launch(
        _trajectory_attention_fwd_kernel,
        (triton.cdiv(tokens, config.sizes["BLOCK_M"]), batch * heads), config,
        qkv, y, own, lse,
        tokens, tokens // frames, frames, heads, lse.shape[-1], dim**-0.5, *qkv.stride()[:4],
        RAGGED=tokens // frames < sizes["BLOCK_N"], **sizes,
    )  # fmt: skip
    return y, own, lse


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    y, _, lse = output
    ctx.save_for_backward(inputs[0], y, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_own: Tensor | None, _: None
) -> tuple[Tensor | None, None]:
    qkv, y, lse = ctx.saved_tensors
    if grad_y is None and grad_own is None:
        return None, None
    if grad_y is None:
        grad_y = torch.zeros_like(y)
    if grad_own is None:
        grad_own = y.new_zeros(y.shape[0], y.shape[1], y.shape[3])
    return trajectory_attention_bwd(grad_y, grad_own, qkv, y, lse), None


trajectory_attention_fwd.register_fake(_outputs)
trajectory_attention_fwd.register_autograd(_backward, setup_context=_setup)


@register("trajectory_attention", "triton")
def trajectory_attention(qkv: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """``reference.trajectory_attention``; d up to 128."""
    (qkv,) = cast_for_autocast(qkv)
    tokens, _, heads, dim = qkv.shape[1:]
    # Offsets within a clip are 32-bit numbers.
    small = tokens * max(qkv.stride(1), max(frames, 3) * heads * dim) < 2**31
    if not supported(qkv) or dim > 128 or not small:
        return trajectory_attention_torch(qkv, frames)
    y, own, _ = trajectory_attention_fwd(qkv, frames)
    return y, own
