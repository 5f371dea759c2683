"""The decoder's input in one write: visible rows or the mask token, plus positions.

Maths: out[b, l] = (visible[b, l] if l < n_b else mask_token) + positions[order[b, l]], added in
fp32 and rounded once; n_b visible tokens of clip b, in a packed batch rows offsets[b] to
offsets[b + 1]. Backward: d_visible[b, l] = g[b, l] for l < n_b, d_mask_token = the sum of all
other g[b, l].

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block; of
b clip, l place in its sequence, r rows of a tile, n token, c channel. Sizes: B clips, N tokens,
L of a clip's sequence, T visible rows in all, C width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..dispatch import register
from .launch import Config, Tunable, launch, power_of_2, supported, with_unit_stride

# Columns in steps of 128: every decoder width in use is a multiple, so no lane idles (a block of
# next_power_of_2(384) would leave a quarter), and a wide model takes no more registers.
COLUMNS = 128
# Rows per partial sum of the mask token's gradient: the sums are 1.6 % of the bytes in 16 bit.
PARTIAL_ROWS = 128

TILE = Tunable(
    "decoder_assemble",
    (Config({"BLOCK_R": 16}, 4, 1), Config({"BLOCK_R": 32}, 8, 1)),
    {0: 0},
)


@triton.jit
def _clip_rows(offsets, i_b, count, stride_vb, stride_vn, PACKED: tl.constexpr):
    """Where clip i_b's visible rows start in memory, and how many there are."""
    if PACKED:
        first = tl.load(offsets + i_b).to(tl.int64)
        return first * stride_vn, tl.load(offsets + i_b + 1) - first
    else:
        return i_b * stride_vb, count


@triton.jit
def _decoder_assemble_fwd_kernel(
    visible, mask_token, positions, order, offsets, out,
    count, length, width, stride_vb, stride_vn, stride_p, stride_ob, stride_ol,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Program (r, c, b) writes tile (r, c) of out[b] (L, C)."""
    i_b = tl.program_id(2).to(tl.int64)
    o_l = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_l, m_c = o_l < length, o_c < width
    o_clip, visible_count = _clip_rows(offsets, i_b, count, stride_vb, stride_vn, PACKED)
    m_visible = o_l < visible_count
    b_n = tl.load(order + i_b * stride_ob + o_l * stride_ol, mask=m_l, other=0)  # [BLOCK_R]
    b_position = tl.load(
        positions + b_n[:, None] * stride_p + o_c[None, :], mask=m_l[:, None] & m_c[None, :]
    )  # [BLOCK_R, BLOCK_C]
    b_row = tl.load(
        visible + o_clip + o_l[:, None].to(tl.int64) * stride_vn + o_c[None, :],
        mask=(m_visible & m_l)[:, None] & m_c[None, :],
    )
    b_token = tl.load(mask_token + o_c, mask=m_c).to(tl.float32)
    b_out = tl.where(m_visible[:, None], b_row.to(tl.float32), b_token[None, :])
    b_out += b_position.to(tl.float32)
    tl.store(
        out + (i_b * length + o_l[:, None]) * width + o_c[None, :],
        b_out.to(b_row.dtype),
        mask=m_l[:, None] & m_c[None, :],
    )


@triton.jit
def _decoder_assemble_bwd_kernel(
    grad, offsets, grad_visible, partial,
    count, length, width, stride_vb, stride_gb, stride_gl,
    ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Program (r, c, b) takes ROWS rows of grad[b] (L, C): copies the visible ones to their place,
    sums the others to one row of partial (B * row blocks, C)."""
    i_b = tl.program_id(2).to(tl.int64)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < width
    o_clip, visible_count = _clip_rows(offsets, i_b, count, stride_vb, width, PACKED)
    b_sum = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(ROWS // BLOCK_R):
        o_l = tl.program_id(0) * ROWS + step * BLOCK_R + tl.arange(0, BLOCK_R)
        m_tile = (o_l < length)[:, None] & m_c[None, :]
        m_visible = (o_l < visible_count)[:, None]
        o_row = o_l[:, None].to(tl.int64)
        b_grad = tl.load(
            grad + i_b * stride_gb + o_row * stride_gl + o_c[None, :], mask=m_tile, other=0.0
        )  # [BLOCK_R, BLOCK_C]
        tl.store(
            grad_visible + o_clip + o_row * width + o_c[None, :], b_grad, mask=m_tile & m_visible
        )
        b_sum += tl.where(m_visible, 0.0, b_grad.to(tl.float32))
    i_partial = i_b * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial + i_partial * width + o_c, tl.sum(b_sum, 0), mask=m_c)


@torch.library.custom_op("tats_fast::decoder_assemble", mutates_args=())
def decoder_assemble_fwd(
    visible: Tensor, mask_token: Tensor, positions: Tensor, order: Tensor, offsets: Tensor | None
) -> Tensor:
    """visible (B, N_v, C) or packed (T, C), mask_token (C,), positions (N, C), order (B, L) int64,
    offsets (B + 1,) int32 or None -> (B, L, C)."""
    batch, length = order.shape
    width = visible.shape[-1]
    visible, positions = with_unit_stride(visible), with_unit_stride(positions)
    packed = offsets is not None
    out = visible.new_empty(batch, length, width)
    columns = min(COLUMNS, power_of_2(width))
    config = TILE.config(visible.device)
    rows = triton.cdiv(length, config.sizes["BLOCK_R"])
    launch(
        _decoder_assemble_fwd_kernel, (rows, triton.cdiv(width, columns), batch), config,
        visible, mask_token.contiguous(), positions, order,
        offsets.contiguous() if packed else None, out,
        visible.shape[-2], length, width, 0 if packed else visible.stride(0), visible.stride(-2),
        positions.stride(0), *order.stride(), BLOCK_C=columns, PACKED=packed,
    )  # fmt: skip
    return out


decoder_assemble_fwd.register_fake(
    lambda visible, _, __, order, offsets: visible.new_empty(*order.shape, visible.shape[-1])
)


@torch.library.custom_op("tats_fast::decoder_assemble_backward", mutates_args=())
def decoder_assemble_bwd(grad: Tensor, offsets: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """grad (B, L, C), offsets (B + 1,) or None -> d_visible (B, rows, C), or packed (rows, C);
    d_mask_token (C,) fp32."""
    batch, length, width = grad.shape
    grad = with_unit_stride(grad)
    packed = offsets is not None
    grad_visible = grad.new_empty(*(() if packed else (batch,)), rows, width)
    columns = min(COLUMNS, power_of_2(width))
    blocks = triton.cdiv(length, PARTIAL_ROWS)
    partial = grad.new_empty(batch * blocks, width, dtype=torch.float32)
    launch(
        _decoder_assemble_bwd_kernel, (blocks, triton.cdiv(width, columns), batch),
        TILE.config(grad.device),
        grad, offsets.contiguous() if packed else None, grad_visible, partial,
        rows, length, width, rows * width, *grad.stride()[:2],
        ROWS=PARTIAL_ROWS, BLOCK_C=columns, PACKED=packed,
    )  # fmt: skip
    return grad_visible, partial.sum(0)


@decoder_assemble_bwd.register_fake
def _(grad: Tensor, offsets: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    batch, _, width = grad.shape
    shape = (rows, width) if offsets is not None else (batch, rows, width)
    return grad.new_empty(shape), grad.new_empty(width, dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    visible, mask_token, _, _, offsets = inputs
    ctx.save_for_backward(offsets)
    ctx.rows, ctx.token_dtype = visible.shape[-2], mask_token.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (offsets,) = ctx.saved_tensors
    grad_visible, grad_token = decoder_assemble_bwd(grad, offsets, ctx.rows)
    return grad_visible, grad_token.to(ctx.token_dtype), None, None, None


decoder_assemble_fwd.register_autograd(_backward, setup_context=_setup)


@register("decoder_assemble", "triton")
def decoder_assemble(
    visible: Tensor,
    mask_token: Tensor,
    positions: Tensor,
    order: Tensor,
    offsets: Tensor | None = None,
) -> Tensor:
    """``reference.decoder_assemble``. In a packed batch every row of ``visible`` must belong to a
    clip: the gradient of a row between two clips would stay unwritten."""
    if not supported(visible, mask_token, positions) or positions.requires_grad:
        return reference.decoder_assemble(visible, mask_token, positions, order, offsets)
    return decoder_assemble_fwd(visible, mask_token, positions, order, offsets)
