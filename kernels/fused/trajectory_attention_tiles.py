"""Spatial stage of trajectory attention: what its three kernels share, sizes of tiles included.

A frame is TILES * BLOCK_N keys and a tail in a block of its own: 196 = 3 * 64 + 4, where 12 idle
columns of 16 cost 6 % and 60 of 64 would cost 23 %.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block;
letters and sizes are those of ``trajectory_attention``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import Config, Tunable, dot_precision, power_of_2

LOG2E = tl.constexpr(1.4426950408889634)
PADDING = 128
"""L and delta are padded to a multiple of this, so that no block of queries needs a mask."""


def tile(queries: int, keys: int, warps: int, stages: int) -> Config:
    """Blocks of ``queries`` by ``keys``."""
    return Config({"BLOCK_M": queries, "BLOCK_N": keys}, num_warps=warps, num_stages=stages)


WIDE = {
    (256, 2): tile(64, 64, 8, 2),
    (256, 4): tile(64, 32, 8, 2),
    (512, 4): tile(32, 32, 8, 1),
}
"""By bytes of a head's row and of a number, for rows over the 128 bytes (d = 64 in 16 bit) that the
tables are made for; they fit every chip's shared memory."""


def key_tiles(config: Config, qkv: Tensor, frames: int) -> dict[str, Any]:
    """Compile-time arguments shared by the three kernels, for keys in tiles of at most the
    configuration's. With P = 196 and tiles of 64: TILES 3, BLOCK_TAIL 16."""
    dim, places = qkv.shape[4], qkv.shape[1] // frames
    block = config.sizes["BLOCK_N"]
    block = min(block, max(16, power_of_2(places + 1) // 2))
    tail = places % block if places >= block else 0
    return {
        "DIM": dim,
        "PADDED": dim != power_of_2(dim, 16),
        "BLOCK_D": power_of_2(dim, 16),
        "PRECISION": dot_precision(qkv.dtype),
        "BLOCK_N": block,
        "BLOCK_TAIL": power_of_2(tail, 16) if tail else 0,
        "TILES": max(1, places // block),
    }


def config_for(tunable: Tunable, qkv: Tensor) -> Config:
    """The configuration for heads of ``qkv``'s width."""
    number = qkv.element_size()
    row = power_of_2(qkv.shape[4], 16) * number
    return tunable.config(qkv.device) if row <= 128 else WIDE[row, number]


@triton.jit
def batch_and_head(heads):
    """Of a program (_, b*h + h), in 64 bit: the offsets of a batch can pass 2^31."""
    i_bh = tl.program_id(1).to(tl.int64)
    return i_bh // heads, i_bh % heads


@triton.jit
def rows_of(p_base, o_row, stride, o_d):
    """Pointers to rows o_row, `stride` numbers apart. [rows, BLOCK_D]"""
    return p_base + o_row[:, None] * stride + o_d[None, :]


@triton.jit
def store_rows(p_rows, b_rows, m_row, m_d, PADDED: tl.constexpr):
    """Rows m_row of a block, channels m_d."""
    m_rows = m_row[:, None]
    if PADDED:
        m_rows = m_rows & m_d
    tl.store(p_rows, b_rows.to(p_rows.dtype.element_ty), mask=m_rows)
