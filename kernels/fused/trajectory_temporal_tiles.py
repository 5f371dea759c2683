"""Temporal stage of trajectory attention: what its four kernels share, sizes of tiles included.

Products over frames are one small matrix product per token, (heads x C)(C x F) in ``scores`` and
(heads x F)(F x C) elsewhere: with 8 heads and 8 frames half a tensor core's tile. So PACK tokens
share one product: its rows are (token, head), its columns (token, frame), and blocks off the
diagonal are zero or dropped.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block;
letters and sizes are those of ``trajectory_temporal``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import ARCHITECTURES, Config, Tunable, architecture, dot_precision, power_of_2

SLAB = tl.constexpr(64)
"""Tokens whose weights lie together, for ``grad_tokens``."""


def tile(rows: int, channels: int, warps: int, stages: int) -> Config:
    """Blocks of ``rows`` tokens and ``channels`` channels, for F = 8, d = 64 and 16 bit."""
    return Config({"BLOCK_M": rows, "BLOCK_C": channels}, num_warps=warps, num_stages=stages)


def fitted(
    tunable: Tunable,
    like: Tensor,
    slots: int,
    need: Callable[[int, int, int, int], tuple[int, int]],
) -> tuple[Config, int]:
    """The chip's configuration and ``slots``, halved until they fit other shapes than ViT-B's.

    Args:
        like: a tensor on the device, of the dtype of the blocks.
        need: of (tokens, channels, slots, stages), the numbers in shared memory and the fp32
            numbers in registers.
    """
    chosen = tunable.config(like.device)
    rows, channels = chosen.sizes["BLOCK_M"], chosen.sizes["BLOCK_C"]
    warps, stages = chosen.num_warps, chosen.num_stages
    limit = 1024 * ARCHITECTURES.get(architecture(like.device), min(ARCHITECTURES.values()))
    while True:
        shared, registers = need(rows, channels, slots, stages)
        if shared * like.element_size() <= limit and registers <= 128 * 32 * warps:
            break
        if channels > 16:
            channels //= 2
        elif rows > 16:
            rows //= 2
        elif stages > 2:
            stages -= 1
        elif slots > 2:
            slots //= 2
        else:
            break
    return tile(rows, channels, warps, stages), slots


def pack(slots: int, frames: int) -> int:
    """Tokens whose (slots x F) blocks make up a tile of a tensor core, 16 x 16 or larger."""
    return max(1, 16 // slots, 16 // power_of_2(frames))


def shape_constants(heads: int, dim: int, frames: int, dtype: torch.dtype) -> dict[str, int | str]:
    """Compile-time arguments of all four kernels."""
    return {
        "HEADS": heads, "DIM": dim, "FRAMES": frames, "WIDTH": heads * dim,
        "BLOCK_D": power_of_2(dim, 16), "PRECISION": dot_precision(dtype),
    }  # fmt: skip


def in_slabs(y: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Room for a and dl of y (T, F, C): (T / SLAB, h, F, SLAB) fp32.

    All heads and frames of a token are then at distances that the compiler knows, and neighbouring
    tokens side by side.
    """
    slabs = triton.cdiv(y.shape[0], SLAB.value)
    both = y.new_empty(2, slabs, heads, y.shape[1], SLAB.value, dtype=torch.float32)
    return both[0], both[1]


@triton.jit
def slab(o_token, HEADS: tl.constexpr, FRAMES: tl.constexpr):
    """Where the weight of a token's first head and frame lies in its slab."""
    return o_token // SLAB * (HEADS * FRAMES * SLAB) + o_token % SLAB


@triton.jit
def packed(last, BLOCK_M: tl.constexpr, PACK: tl.constexpr, SIZE: tl.constexpr):
    """Token, at most ``last``, of each of the PACK*SIZE rows of each pack: [M/P, P*SIZE]."""
    o_first = tl.arange(0, BLOCK_M // PACK) * PACK
    return tl.minimum(o_first[:, None] + (tl.arange(0, PACK * SIZE) // SIZE)[None], last)


@triton.jit
def heads_first(b_z, BLOCK_M: tl.constexpr, SIZE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows (token, head) of every pack to one matrix per head: [M/P, P*H, C] -> [H, M, C]."""
    return tl.permute(tl.reshape(b_z, [BLOCK_M, SIZE, BLOCK_C]), (1, 0, 2))
