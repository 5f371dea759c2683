"""Visible-token gather with its position add, one pass; the gradient is an exact scatter.

Maths: out[t] = x[index[t]] + positions[index[t] mod N], rows of the batch counted b*N + i.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block; of
b clip, n token, t gathered row, c channel. Sizes: B clips, N tokens, T gathered rows, C width.
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

# Memory-bound: a row is 1.5 KB at ViT-B, four warps read it in one go.
ROWS = Tunable("token_gather", (Config({}, num_warps=4, num_stages=1),), {0: 0})


@triton.jit
def _token_gather_fwd_kernel(
    x, index, positions, out,
    tokens, width, stride_xb, stride_xn, stride_p,
    BLOCK_C: tl.constexpr, HAS_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Program t writes row t of out (T, C)."""
    i_t = tl.program_id(0).to(tl.int64)
    i_row = tl.load(index + i_t).to(tl.int32)  # a 64-bit division would take a hundred instructions
    i_b, i_n = (i_row // tokens).to(tl.int64), i_row % tokens
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < width
    b_row = tl.load(x + i_b * stride_xb + i_n * stride_xn + o_c, mask=m_c)  # [BLOCK_C]
    if HAS_POSITIONS:
        # Added in fp32 and rounded once.
        b_position = tl.load(positions + i_n * stride_p + o_c, mask=m_c)
        b_row = (b_row.to(tl.float32) + b_position.to(tl.float32)).to(b_row.dtype)
    tl.store(out + i_t * width + o_c, b_row, mask=m_c)


@triton.jit
def _token_gather_bwd_kernel(grad, index, grad_x, width, stride_g, BLOCK_C: tl.constexpr):
    """Program t puts row t of grad (T, C) at row index[t] of grad_x, zero before."""
    i_t = tl.program_id(0).to(tl.int64)
    i_row = tl.load(index + i_t)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < width
    b_grad = tl.load(grad + i_t * stride_g + o_c, mask=m_c)
    tl.store(grad_x + i_row * width + o_c, b_grad, mask=m_c)


@torch.library.custom_op("tats_fast::token_gather", mutates_args=())
def token_gather_fwd(x: Tensor, index: Tensor, positions: Tensor | None) -> Tensor:
    """x (B, N, C), index (T,) int64 rows of the batch, positions (N, C) -> (T, C)."""
    _, tokens, width = x.shape
    x = with_unit_stride(x)
    out = x.new_empty(index.shape[0], width)
    place = x if positions is None else with_unit_stride(positions)
    launch(
        _token_gather_fwd_kernel, (index.shape[0],), ROWS.config(x.device),
        x, index, place, out, tokens, width, *x.stride()[:2], place.stride(-2),
        BLOCK_C=power_of_2(width), HAS_POSITIONS=positions is not None,
    )  # fmt: skip
    return out


@torch.library.custom_op("tats_fast::token_gather_backward", mutates_args=())
def token_gather_bwd(grad: Tensor, index: Tensor, batch: int, tokens: int) -> Tensor:
    """grad (T, C), index (T,) -> (B, N, C), zero where no row was gathered."""
    width = grad.shape[-1]
    grad = with_unit_stride(grad)
    grad_x = grad.new_zeros(batch, tokens, width)
    launch(
        _token_gather_bwd_kernel, (index.shape[0],), ROWS.config(grad.device),
        grad, index, grad_x, width, grad.stride(0), BLOCK_C=power_of_2(width),
    )  # fmt: skip
    return grad_x


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, index, _ = inputs
    ctx.save_for_backward(index)
    ctx.shape = x.shape[:2]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (index,) = ctx.saved_tensors
    return token_gather_bwd(grad, index, *ctx.shape), None, None


token_gather_fwd.register_fake(lambda x, index, _: x.new_empty(index.shape[0], x.shape[-1]))
token_gather_bwd.register_fake(lambda grad, _, *shape: grad.new_empty(*shape, grad.shape[-1]))
token_gather_fwd.register_autograd(_backward, setup_context=_setup)


@register("token_gather", "triton")
def token_gather(x: Tensor, index: Tensor, positions: Tensor | None = None) -> Tensor:
    """``reference.token_gather``. The indices of one call must differ from each other, as draws
    without replacement do: the scatter does not add."""
    if not supported(x, positions) or (positions is not None and positions.requires_grad):
        return reference.token_gather(x, index, positions)
    return token_gather_fwd(x, reference.batch_rows(index, x.shape[1]).flatten(), positions).view(
        *index.shape, x.shape[-1]
    )
