"""Spatial stage of trajectory attention: the gradients.

One kernel makes dq by blocks of queries, the other dk and dv by tiles of keys; both recompute p
from the saved L. That is 14 N^2 C FLOPs instead of 10, but no atomics: gradients are the same bits
every time.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block;
letters and sizes are those of ``trajectory_attention``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Tunable, launch, load_block, with_unit_stride
from .trajectory_attention_tiles import (
    LOG2E,
    batch_and_head,
    config_for,
    key_tiles,
    rows_of,
    store_rows,
    tile,
)

QUERIES = Tunable(
    "trajectory_attention_dq",
    (tile(64, 64, 4, 3), tile(64, 64, 4, 2), tile(64, 32, 4, 3)),
    {80: 2, 89: 2, 90: 0, 100: 2, 0: 2},
)
KEYS = Tunable(
    "trajectory_attention_dkv",
    (tile(64, 64, 4, 3), tile(64, 64, 4, 2), tile(32, 64, 4, 3)),
    {80: 1, 89: 1, 90: 0, 100: 0, 0: 1},
)


@triton.jit
def _query_gradient(
    b_q, b_k, b_v, b_do, b_lse, b_delta, b_dq, scale, o_s, places,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq += ds k for one tile of keys. [BLOCK_M, BLOCK_D]"""
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
    b_p = tl.exp2(b_s * scale - b_lse[:, None])
    if MASKED:
        b_p = tl.where(o_s[None, :] < places, b_p, 0.0)
    b_ds = (b_p * (b_dp - b_delta[:, None])).to(b_k.dtype)
    return tl.dot(b_ds, b_k, b_dq, input_precision=PRECISION)


@triton.jit
def _trajectory_attention_bwd_dq_kernel(
    qkv, y, grad_y, grad_own, lse, delta, do_own, grad_qkv,
    tokens, places, frames, heads, rows, scale, stride_b, stride_n, stride_3, stride_h,
    DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    TILES: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Program (m, b*h + h): dq of BLOCK_M queries; delta, and do where f = f(i), for dk and dv."""
    i_b, i_h = batch_and_head(heads)
    width = heads * DIM
    i_m = tl.program_id(0) * BLOCK_M
    o_m = i_m + tl.arange(0, BLOCK_M)
    m_m = o_m < tokens
    o_row = tl.minimum(o_m, tokens - 1)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d[None, :] < DIM
    o_n = tl.arange(0, BLOCK_N)
    qkv += i_b * stride_b + i_h * stride_h
    y += i_b * tokens * frames * width + i_h * DIM
    grad_y += i_b * tokens * frames * width + i_h * DIM
    grad_own += i_b * tokens * width + i_h * DIM
    do_own += i_b * tokens * width + i_h * DIM
    grad_qkv += i_b * tokens * 3 * width + i_h * DIM
    lse += (i_b * heads + i_h) * frames * rows
    delta += (i_b * heads + i_h) * frames * rows
    b_q = load_block(rows_of(qkv, o_row, stride_n, o_d), m_d, PADDED)
    p_k = rows_of(qkv + stride_3, tl.minimum(o_n, places - 1), stride_n, o_d)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    p_do, p_y = rows_of(grad_y, o_row, frames * width, o_d), rows_of(y, o_row, frames * width, o_d)
    b_do_next, b_y_next = load_block(p_do, m_d, PADDED), load_block(p_y, m_d, PADDED)
    for i_f in range(0, frames):
        b_do, b_y = b_do_next, b_y_next
        b_lse = tl.load(lse + i_f * rows + o_row)
        # The next frame's are on their way while this one's keys are worked on.
        i_next = tl.minimum(i_f + 1, frames - 1)
        b_do_next = load_block(p_do + i_next * width, m_d, PADDED)
        b_y_next = load_block(p_y + i_next * width, m_d, PADDED)
        if (i_m < (i_f + 1) * places) & (i_m + BLOCK_M > i_f * places):
            m_own = m_m & (o_m >= i_f * places) & (o_m < (i_f + 1) * places)
            b_own = load_block(rows_of(grad_own, o_row, width, o_d), m_d, PADDED)
            b_sum = (b_do.to(tl.float32) + b_own.to(tl.float32)).to(b_do.dtype)
            b_do = tl.where(m_own[:, None], b_sum, b_do)
            store_rows(rows_of(do_own, o_row, width, o_d), b_do, m_own, m_d, PADDED)
        b_delta = tl.sum(b_do.to(tl.float32) * b_y.to(tl.float32), 1)
        tl.store(delta + i_f * rows + o_m, b_delta, mask=m_m)
        for i_s in range(0, tl.maximum(places // BLOCK_N, 1)):
            p_tile = p_k + (i_f * places + i_s * BLOCK_N) * stride_n
            b_k = load_block(p_tile, m_d, PADDED)
            b_v = load_block(p_tile + stride_3, m_d, PADDED)
            b_dq = _query_gradient(
                b_q, b_k, b_v, b_do, b_lse, b_delta, b_dq, scale * LOG2E, o_n, places,
                RAGGED, PRECISION,
            )  # fmt: skip
        if BLOCK_TAIL > 0:
            o_tail = TILES * BLOCK_N + tl.arange(0, BLOCK_TAIL)
            o_key = i_f * places + tl.minimum(o_tail, places - 1)
            p_tail = rows_of(qkv + stride_3, o_key, stride_n, o_d)
            b_k = load_block(p_tail, m_d, PADDED)
            b_v = load_block(p_tail + stride_3, m_d, PADDED)
            b_dq = _query_gradient(
                b_q, b_k, b_v, b_do, b_lse, b_delta, b_dq, scale * LOG2E, o_tail, places,
                True, PRECISION,
            )  # fmt: skip
    store_rows(rows_of(grad_qkv, o_row, 3 * width, o_d), b_dq * scale, m_m, m_d, PADDED)


@triton.jit
def _key_gradients(
    qkv, grad_y, do_own, lse, delta, grad_qkv, i_f, start, tokens, places, frames, scale,
    stride_n, stride_3, width,
    DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of keys start .. start + BLOCK_N of frame i_f, over all queries."""
    o_s = start + tl.arange(0, BLOCK_N)
    o_key = i_f * places + tl.minimum(o_s, places - 1)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d[None, :] < DIM
    b_k = load_block(rows_of(qkv + stride_3, o_key, stride_n, o_d), m_d, PADDED)
    b_v = load_block(rows_of(qkv + 2 * stride_3, o_key, stride_n, o_d), m_d, PADDED)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i_m in range(0, tokens, BLOCK_M):
        o_m = i_m + tl.arange(0, BLOCK_M)
        o_row = tl.minimum(o_m, tokens - 1)[:, None]
        # do = dy, but for the queries of this very frame the sum the dq kernel has left in do_own.
        # Choosing the address keeps the copy to shared memory asynchronous.
        m_own = (o_row >= i_f * places) & (o_row < (i_f + 1) * places)
        p_do = tl.where(
            m_own,
            do_own + (o_row * width + o_d[None, :]),
            grad_y + (o_row * (frames * width) + o_d[None, :]),
        )
        b_q = load_block(rows_of(qkv, tl.minimum(o_m, tokens - 1), stride_n, o_d), m_d, PADDED)
        b_do = load_block(p_do, m_d, PADDED)
        b_lse = tl.load(lse + o_m)  # infinite past the last query, which makes p zero
        b_delta = tl.load(delta + o_m)
        # Keys are the rows here, so that p and ds, made in registers, are left operands there.
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
        b_p = tl.exp2(b_s * (scale * LOG2E) - b_lse[None, :])
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
        b_ds = (b_p * (b_dp - b_delta[None, :])).to(b_q.dtype)
        b_dk = tl.dot(b_ds, b_q, b_dk, input_precision=PRECISION)
    m_s = o_s < places
    store_rows(rows_of(grad_qkv + width, o_key, 3 * width, o_d), b_dk * scale, m_s, m_d, PADDED)
    store_rows(rows_of(grad_qkv + 2 * width, o_key, 3 * width, o_d), b_dv, m_s, m_d, PADDED)


@triton.jit
def _trajectory_attention_bwd_dkv_kernel(
    qkv, grad_y, lse, delta, do_own, grad_qkv,
    tokens, places, frames, heads, rows, scale, stride_b, stride_n, stride_3, stride_h,
    DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """Program (t, b*h + h): tile t % TILES of frame t // TILES; then the frames' tails."""
    i_t = tl.program_id(0)
    i_b, i_h = batch_and_head(heads)
    width = heads * DIM
    i_f, start = i_t // TILES, i_t % TILES * BLOCK_N
    if i_t >= frames * TILES:
        i_f, start = i_t - frames * TILES, TILES * BLOCK_N
    qkv += i_b * stride_b + i_h * stride_h
    do_own += i_b * tokens * width + i_h * DIM
    grad_qkv += i_b * tokens * 3 * width + i_h * DIM
    grad_y += (i_b * tokens * frames + i_f) * width + i_h * DIM
    lse += ((i_b * heads + i_h) * frames + i_f) * rows
    delta += ((i_b * heads + i_h) * frames + i_f) * rows
    if (BLOCK_TAIL == 0) | (i_t < frames * TILES):
        _key_gradients(
            qkv, grad_y, do_own, lse, delta, grad_qkv, i_f, start, tokens, places, frames, scale,
            stride_n, stride_3, width, DIM, PADDED, BLOCK_D, PRECISION, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    elif BLOCK_TAIL > 0:
        _key_gradients(
            qkv, grad_y, do_own, lse, delta, grad_qkv, i_f, start, tokens, places, frames, scale,
            stride_n, stride_3, width, DIM, PADDED, BLOCK_D, PRECISION, BLOCK_M, BLOCK_TAIL,
        )  # fmt: skip


@torch.library.custom_op("tats_fast::trajectory_attention_backward", mutates_args=())
def trajectory_attention_bwd(
    grad_y: Tensor, grad_own: Tensor, qkv: Tensor, y: Tensor, lse: Tensor
) -> Tensor:
    """Gradient of qkv, contiguous (B, N, 3, h, d)."""
    batch, tokens, _, heads, dim = qkv.shape
    frames, rows = lse.shape[2:]
    qkv = with_unit_stride(qkv)
    y, grad_y, grad_own = y.contiguous(), grad_y.contiguous(), grad_own.contiguous()
    grad_qkv = qkv.new_empty(qkv.shape)
    do_own = torch.empty_like(grad_own)
    delta = torch.zeros_like(lse)  # finite where no query is
    numbers = (tokens, tokens // frames, frames, heads, rows, dim**-0.5, *qkv.stride()[:4])
    config = config_for(QUERIES, qkv)
    sizes = key_tiles(config, qkv, frames)
    launch(
        _trajectory_attention_bwd_dq_kernel,
        (triton.cdiv(tokens, config.sizes["BLOCK_M"]), batch * heads), config,
        qkv, y, grad_y, grad_own, lse, delta, do_own, grad_qkv, *numbers,
        RAGGED=tokens // frames < sizes["BLOCK_N"], **sizes,
    )  # fmt: skip
    config = config_for(KEYS, qkv)
    sizes = key_tiles(config, qkv, frames)
    tiles = sizes["TILES"] + (sizes["BLOCK_TAIL"] > 0)
    launch(
        _trajectory_attention_bwd_dkv_kernel, (frames * tiles, batch * heads), config,
        qkv, grad_y, lse, delta, do_own, grad_qkv, *numbers, **sizes,
    )  # fmt: skip
    return grad_qkv


trajectory_attention_bwd.register_fake(lambda grad_y, grad_own, qkv, *_: qkv.new_empty(qkv.shape))
