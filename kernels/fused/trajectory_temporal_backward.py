"""Temporal stage of trajectory attention: the gradients that only a backward pass has.

  tokens    dy_f = sum_h a_f dz_h + dl_f q^_h  with dz_h = W_v,h^T g_h and q^_h = W_k,h^T q2_h again
  weights   dW_v,h = sum_i g_h z_h^T  with z_h = sum_f a_f y_f, and dW_k,h the same with q2 and dl

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block;
letters and sizes are those of ``trajectory_temporal``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Tunable, launch, load_block, power_of_2
from .trajectory_temporal_tiles import (
    SLAB,
    fitted,
    heads_first,
    pack,
    packed,
    shape_constants,
    slab,
    tile,
)

# Accumulators take 128 registers of a thread: of programs with 4 warps a multiprocessor holds two.
GRAD_TOKENS = Tunable(
    "trajectory_temporal_grad_tokens",
    (tile(64, 32, 4, 3), tile(64, 64, 8, 3), tile(128, 32, 8, 3)),
    {80: 0, 89: 0, 90: 0, 100: 0, 0: 0},
)
GRAD_WEIGHTS = Tunable(
    "trajectory_temporal_grad_weights",
    (tile(32, 64, 8, 3), tile(16, 64, 8, 4), tile(16, 64, 8, 3)),
    {80: 1, 89: 2, 90: 1, 100: 1, 0: 2},
)
SIDES = 8
"""Heads times two sides that a program of ``grad_weights`` has room for: 12 heads are 3 groups."""
PROGRAMS = 396
"""Of ``grad_weights``, about: three full waves of an H200's 132 multiprocessors."""


@triton.jit
def _grad_tokens_kernel(
    q2, g, w_k, w_v, a, dl, dy,
    total, stride_k, stride_v,
    HEADS: tl.constexpr, DIM: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dy of BLOCK_M tokens and BLOCK_C channels, summed over the heads in registers.

    One accumulator per frame, in the layout that the products come in: nothing is exchanged.
    """
    chunks = tl.cdiv(WIDTH, BLOCK_C)
    i_c = (tl.program_id(0) % chunks) * BLOCK_C  # neighbours share q2 and g
    i_m = (tl.program_id(0) // chunks).to(tl.int64) * BLOCK_M
    last = (total - 1 - i_m).to(tl.int32)
    o_m, o_d, o_c = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), i_c + tl.arange(0, BLOCK_C)
    o_row = tl.minimum(o_m, last)
    o_x = i_m * (HEADS * DIM) + (o_row[:, None] * (HEADS * DIM) + o_d[None, :])
    MASKED: tl.constexpr = BLOCK_D != DIM or WIDTH % BLOCK_C != 0
    o_a = slab(i_m + o_row, HEADS, FRAMES)
    b_dy = ()
    for _ in tl.static_range(FRAMES):
        b_dy += (tl.zeros([BLOCK_M, BLOCK_C], tl.float32),)
    for i_h in tl.range(0, HEADS):
        o_k = (i_h * DIM + o_d)[:, None] * stride_k + o_c[None, :]
        o_v = (i_h * DIM + o_d)[:, None] * stride_v + o_c[None, :]
        m_w = (o_d < DIM)[:, None] & (o_c < WIDTH)[None, :]
        m_x = (o_m <= last)[:, None] & (o_d < DIM)[None, :]
        b_q = load_block(q2 + i_h * DIM + o_x, m_x, MASKED)  # [M, D]
        b_g = load_block(g + i_h * DIM + o_x, m_x, MASKED)
        b_k = load_block(w_k + o_k, m_w, MASKED)  # [D, C]
        b_v = load_block(w_v + o_v, m_w, MASKED)
        b_a, b_l = (), ()  # loaded before the products that they are waited for with
        for f in tl.static_range(FRAMES):
            o_hf = o_a + (i_h * FRAMES + f) * SLAB
            b_a += (tl.load(a + o_hf),)
            b_l += (tl.load(dl + o_hf),)
        b_hat = tl.dot(b_q, b_k, input_precision=PRECISION)
        b_dz = tl.dot(b_g, b_v, input_precision=PRECISION)
        b_sum = ()
        for f in tl.static_range(FRAMES):
            b_new = b_dy[f] + b_a[f][:, None] * b_dz + b_l[f][:, None] * b_hat
            b_sum += (b_new,)
        b_dy = b_sum
    dy += i_m * (FRAMES * WIDTH)
    m_out = (o_m <= last)[:, None] & (o_c < WIDTH)[None, :]
    for f in tl.static_range(FRAMES):
        o_out = (o_m[:, None] * FRAMES + f) * WIDTH + o_c[None, :]
        tl.store(dy + o_out, b_dy[f].to(dy.dtype.element_ty), mask=m_out)


@triton.jit
def _grad_weights_kernel(
    g, q2, a, dl, y, out,
    total, tiles,
    HEADS: tl.constexpr, DIM: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr, PACK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Split s of the tokens, its part of both weight gradients: out (splits, 2, h, d, C) fp32.

    Both are sums of x_h w^T y, with x = g, w = a or x = q2, w = dl: BLOCK_H counts (head, side).
    """
    i_h = tl.program_id(0) * (BLOCK_H // 2)
    i_c = tl.program_id(1) * BLOCK_C
    i_s = tl.program_id(2)
    o_d, o_c, o_h = tl.arange(0, BLOCK_D), i_c + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_H)
    o_m = tl.arange(0, BLOCK_M)
    m_h = (i_h + o_h // 2 < HEADS)[:, None, None]
    m_d = (o_d < DIM)[None, :, None]
    m_c = (o_c < WIDTH)[None, None, :]
    o_row, o_column = tl.arange(0, PACK * BLOCK_H), tl.arange(0, PACK * BLOCK_F)
    o_head, o_frame = o_row % BLOCK_H // 2, o_column % BLOCK_F
    m_p = (o_row // BLOCK_H)[:, None] == (o_column // BLOCK_F)[None, :]
    m_p = (m_p & (i_h + o_head < HEADS)[:, None] & (o_frame < FRAMES)[None, :])[None]
    o_p = (tl.arange(0, BLOCK_M // PACK) * PACK)[:, None] + (o_row // BLOCK_H)[None, :]
    o_first = o_p[:, :, None]
    o_p = o_first * (HEADS * FRAMES) + (i_h + o_head)[None, :, None] * FRAMES
    o_p += o_frame[None, None, :]
    p_p = tl.where((o_row % 2 == 0)[None, :, None], a + o_p, dl + o_p)
    o_x = (i_h + o_h // 2)[:, None, None] * DIM + o_d[None, :, None]
    p_x = tl.where((o_h % 2 == 0)[:, None, None], g + o_x, q2 + o_x)
    o_y = o_frame[None, :, None] * WIDTH + o_c[None, None, :]
    m_y = (o_frame < FRAMES)[None, :, None] & m_c
    b_out = tl.zeros([BLOCK_H, BLOCK_D, BLOCK_C], tl.float32)
    for i in tl.range(i_s * tiles, tl.minimum((i_s + 1) * tiles, tl.cdiv(total, BLOCK_M))):
        i_m = tl.cast(i, tl.int64) * BLOCK_M
        last = (total - 1 - i_m).to(tl.int32)
        m_live = m_p & (o_first <= last)  # zero weights for tokens past the last
        b_p = tl.load(p_p + i_m * (HEADS * FRAMES), mask=m_live, other=0.0)  # [M/P, P*H, P*F]
        o_token = packed(last, BLOCK_M, PACK, BLOCK_F)[:, :, None] * (FRAMES * WIDTH)
        o_last = tl.minimum(o_m, last)[None, None, :] * (HEADS * DIM)
        b_x = tl.load(p_x + i_m * (HEADS * DIM) + o_last, mask=m_h & m_d, other=0.0)  # [H, D, M]
        p_y = y + i_m * (FRAMES * WIDTH) + (o_token + o_y)
        b_y = load_block(p_y, m_y, BLOCK_F != FRAMES or WIDTH % BLOCK_C != 0)  # [M/P, P*F, C]
        b_z = tl.dot(b_p, b_y, input_precision=PRECISION).to(b_y.dtype)
        b_z = heads_first(b_z, BLOCK_M, BLOCK_H, BLOCK_C)
        b_out = tl.dot(b_x, b_z, b_out, input_precision=PRECISION)
    o_out = (i_s * 2 + o_h % 2) * HEADS + i_h + o_h // 2
    o_out = o_out.to(tl.int64)[:, None, None] * (DIM * WIDTH) + o_d[None, :, None] * WIDTH
    tl.store(out + o_out + o_c[None, None, :], b_out, mask=m_h & m_d & m_c)


def grad_tokens(
    q2: Tensor, g: Tensor, a: Tensor, dl: Tensor, y: Tensor, weight_k: Tensor, weight_v: Tensor
) -> Tensor:
    """q2 and g (T, h, d) contiguous, a and dl in slabs, y (T, F, C) -> dy like y."""
    total, heads, dim = q2.shape
    frames, width = y.shape[1:]
    inner = power_of_2(dim, 16)

    def need(rows: int, channels: int, slots: int, stages: int) -> tuple[int, int]:
        return stages * 2 * inner * (rows + channels), rows * channels * frames

    config, _ = fitted(GRAD_TOKENS, y, 1, need)
    grid = (
        triton.cdiv(width, config.sizes["BLOCK_C"]) * triton.cdiv(total, config.sizes["BLOCK_M"]),
    )
    dy = torch.empty_like(y)
    launch(
        _grad_tokens_kernel, grid, config,
        q2, g, weight_k, weight_v, a, dl, dy, total, weight_k.stride(0), weight_v.stride(0),
        **shape_constants(heads, dim, frames, y.dtype),
    )  # fmt: skip
    return dy


def grad_weights(q2: Tensor, g: Tensor, a: Tensor, dl: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """q2, g (T, h, d) and a, dl (T, h, F), contiguous, y (T, F, C) -> dW_k, dW_v (h*d, C).

    Splits of the tokens write partial sums, added in order: the same bits every time.
    """
    total, heads, dim = q2.shape
    frames, width = y.shape[1:]
    inner, block_f = power_of_2(dim, 16), power_of_2(frames)

    def need(rows: int, channels: int, slots: int, stages: int) -> tuple[int, int]:
        weights = rows * slots * pack(slots, frames) * block_f
        loaded = slots * rows * inner + rows * block_f * channels + weights
        return (stages - 1) * loaded + slots * rows * channels, slots * inner * channels

    config, slots = fitted(GRAD_WEIGHTS, y, SIDES, need)
    groups = triton.cdiv(heads, slots // 2), triton.cdiv(width, config.sizes["BLOCK_C"])
    tiles = triton.cdiv(total, config.sizes["BLOCK_M"])
    # At least 256 tokens per program, or the sums outweigh the products.
    splits = min(triton.cdiv(PROGRAMS, groups[0] * groups[1]), triton.cdiv(total, 256))
    per_split = triton.cdiv(tiles, splits)
    splits = triton.cdiv(tiles, per_split)
    out = y.new_empty(splits, 2, width, width, dtype=torch.float32)
    launch(
        _grad_weights_kernel, (*groups, splits), config, g, q2, a, dl, y, out, total, per_split,
        BLOCK_H=slots, BLOCK_F=block_f, PACK=pack(slots, frames),
        **shape_constants(heads, dim, frames, y.dtype),
    )  # fmt: skip
    dw_v, dw_k = (out[:, side].sum(0).to(y.dtype) for side in range(2))
    return dw_k, dw_v
