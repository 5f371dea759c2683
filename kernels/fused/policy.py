"""The floored softmax policy with its entropy, and a draw of all tokens from it: one clip, one
program.

Maths, in fp32: s = softmax(l), p = (1 - a) s + a/N, H = - sum p log p. At a = 0, log p is
l - max - log(sum exp(l - max)), finite where p underflows.
Backward of g = dL/dlog p and G = dL/dH, with w = (1 - a) s: v = (w/p) g - G w log p (w/p = 1 at
a = 0) and dl = v - s sum(v); s and p are recomputed from the logits, since (p - a/N) would lose a
small s.
Draw: keys log p - log(-log u) in descending order, lower index first among equals. A key's bits as
an integer that falls as the key rises, over the token's index, is one 64-bit number; sorting those
is exact and gives a permutation even of keys that are not numbers.

Names: i_ index, o_ offsets, p_ pointers, b_ block of values, m_ mask, BLOCK_ length of a block; of
b clip, n token. Sizes: B clips, N tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..dispatch import register
from .launch import Config, Tunable, launch, power_of_2, supported, with_unit_stride

# A clip is 6 KB at ViT-B: what takes time is the way from reduction to reduction, and in the sort
# (66 layers for 2048 keys) from layer to layer. The fewer numbers a thread holds the shorter both.
LOGPROB = Tunable("policy_logprob", (Config({}, 8, 1), Config({}, 4, 1)), {0: 0})
SAMPLE = Tunable("policy_sample", (Config({}, 16, 1), Config({}, 8, 1)), {0: 0})
MAX_SORTED = 8192
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _policy(logits, o_n, m_n, keep, base, FLOORED: tl.constexpr):
    """s (0 in the padding), p, log p (0 in the padding); keep = 1 - a, base = a/N."""
    b_logits = tl.load(logits + o_n, mask=m_n, other=-float("inf")).to(tl.float32)  # [BLOCK_N]
    b_logits -= tl.max(b_logits, 0)
    b_softmax = tl.exp(b_logits)
    total = tl.sum(b_softmax, 0)
    b_softmax /= total
    if FLOORED:
        b_p = keep * b_softmax + base
        b_log_p = tl.log(b_p)
    else:
        b_p = b_softmax
        b_log_p = b_logits - tl.log(total)
    return b_softmax, b_p, tl.where(m_n, b_log_p, 0.0)


@triton.jit
def _exchange(b_item, o_n, BLOCK_N: tl.constexpr, RUN: tl.constexpr, STEP: tl.constexpr):
    """One layer of a bitonic sorting network: each item against the one 2^STEP away, lower first
    in the even runs of 2^RUN, higher first in the odd ones."""
    b_pair = tl.reshape(b_item, (BLOCK_N // 2 ** (STEP + 1), 2, 2**STEP))
    b_both = tl.sum(b_pair, 1, keep_dims=True)  # exact modulo 2^64
    b_other = tl.reshape(b_both - b_pair, (BLOCK_N,))
    m_lower_first = ((o_n >> RUN) & 1) == ((o_n >> STEP) & 1)
    return tl.where((b_item > b_other) == m_lower_first, b_other, b_item)


@triton.jit
def _descending(b_key, o_n, m_n, BLOCK_N: tl.constexpr, LOG_N: tl.constexpr):
    """Indices of the keys [BLOCK_N], largest key first; the padding comes last."""
    b_bits = b_key.to(tl.int32, bitcast=True)
    # Of negative floats the lower has the higher bits; ~ turns descending into ascending.
    b_rank = ~tl.where(b_bits < 0, b_bits ^ 0x7FFFFFFF, b_bits)
    b_rank = tl.where(m_n, b_rank, 0x7FFFFFFF)
    b_item = (b_rank.to(tl.int64) << 32) | o_n.to(tl.int64)
    # tl.sort is this network, instruction for instruction, but takes the interpreter 2.5 s a clip.
    for run in tl.static_range(1, LOG_N + 1):
        for layer in tl.static_range(run):
            b_item = _exchange(b_item, o_n, BLOCK_N, run, run - 1 - layer)
    return b_item & 0xFFFFFFFF


@triton.jit
def _policy_fwd_kernel(
    logits, uniform, log_p, entropy, order,
    tokens, stride_l, stride_u, keep, base,
    BLOCK_N: tl.constexpr, LOG_N: tl.constexpr, FLOORED: tl.constexpr, DRAW: tl.constexpr,
):  # fmt: skip
    """Program b: log_p[b] (N,), entropy[b] and, with DRAW, order[b] (N,)."""
    i_b = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < tokens
    _, b_p, b_log_p = _policy(logits + i_b * stride_l, o_n, m_n, keep, base, FLOORED)
    tl.store(log_p + i_b * tokens + o_n, b_log_p, mask=m_n)
    tl.store(entropy + i_b, -tl.sum(b_p * b_log_p, 0))
    if DRAW:
        b_uniform = tl.load(uniform + i_b * stride_u + o_n, mask=m_n, other=0.5)
        b_key = b_log_p - tl.log(-tl.log(tl.maximum(b_uniform, TINY)))
        b_order = _descending(b_key, o_n, m_n, BLOCK_N, LOG_N)
        tl.store(order + i_b * tokens + o_n, b_order, mask=m_n)


@triton.jit
def _policy_bwd_kernel(
    logits, grad_log_p, grad_entropy, grad_logits,
    tokens, stride_l, stride_g, stride_h, keep, base,
    BLOCK_N: tl.constexpr, FLOORED: tl.constexpr,
):  # fmt: skip
    """Program b: grad_logits[b] (N,)."""
    i_b = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < tokens
    b_softmax, b_p, b_log_p = _policy(logits + i_b * stride_l, o_n, m_n, keep, base, FLOORED)
    b_grad = tl.load(grad_log_p + i_b * stride_g + o_n, mask=m_n, other=0.0)  # [BLOCK_N]
    pull = tl.load(grad_entropy + i_b * stride_h)
    b_weight = b_softmax
    if FLOORED:
        b_weight *= keep
        b_grad *= b_weight / b_p
    b_value = b_grad - pull * b_weight * b_log_p
    b_value -= b_softmax * tl.sum(b_value, 0)
    tl.store(grad_logits + i_b * tokens + o_n, b_value.to(grad_logits.dtype.element_ty), mask=m_n)


def _logprob_config(device: torch.device, block: int) -> Config:
    config = LOGPROB.config(device)
    return replace(config, num_warps=min(32, config.num_warps * max(1, block // 2048)))


def _outputs(logits: Tensor, uniform: Tensor | None, _: float) -> tuple[Tensor, Tensor, Tensor]:
    log_p = logits.new_empty(logits.shape, dtype=torch.float32)
    places = 0 if uniform is None else logits.shape[1]
    order = log_p.new_empty(logits.shape[0], places, dtype=torch.int64)
    return log_p, log_p.new_empty(logits.shape[0]), order


@torch.library.custom_op("tats_fast::policy", mutates_args=())
def policy_fwd(
    logits: Tensor, uniform: Tensor | None, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """logits (B, N), and uniform (B, N) for a draw -> log p (B, N) and entropy (B,) in fp32, order
    (B, N) int64, or (B, 0) without a draw."""
    batch, tokens = logits.shape
    block = power_of_2(tokens, 32)
    draws = uniform is not None
    logits = with_unit_stride(logits)
    uniform = with_unit_stride(uniform) if draws else None
    log_p, entropy, order = _outputs(logits, uniform, floor)
    config = SAMPLE.config(logits.device) if draws else _logprob_config(logits.device, block)
    launch(
        _policy_fwd_kernel, (batch,), config,
        logits, uniform, log_p, entropy, order if draws else None, tokens, logits.stride(0),
        uniform.stride(0) if draws else 0, float(1 - floor), floor / tokens,
        BLOCK_N=block, LOG_N=block.bit_length() - 1, FLOORED=floor != 0, DRAW=draws,
    )  # fmt: skip
    return log_p, entropy, order


@torch.library.custom_op("tats_fast::policy_backward", mutates_args=())
def policy_bwd(logits: Tensor, grad_log_p: Tensor, grad_entropy: Tensor, floor: float) -> Tensor:
    """Gradients (B, N) and (B,) -> gradient of the logits (B, N)."""
    batch, tokens = logits.shape
    logits, grad_log_p = with_unit_stride(logits), with_unit_stride(grad_log_p)
    grad_logits = logits.new_empty(batch, tokens)
    block = power_of_2(tokens, 32)
    launch(
        _policy_bwd_kernel, (batch,), _logprob_config(logits.device, block),
        logits, grad_log_p, grad_entropy, grad_logits,
        tokens, logits.stride(0), grad_log_p.stride(0), grad_entropy.stride(0),
        float(1 - floor), floor / tokens, BLOCK_N=block, FLOORED=floor != 0,
    )  # fmt: skip
    return grad_logits


policy_fwd.register_fake(_outputs)
policy_bwd.register_fake(lambda logits, *_: logits.new_empty(logits.shape))


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    logits, _, ctx.floor = inputs
    ctx.save_for_backward(logits)


def _backward(
    ctx: Any, grad_log_p: Tensor, grad_entropy: Tensor, _: None
) -> tuple[Tensor, None, None]:
    return policy_bwd(*ctx.saved_tensors, grad_log_p, grad_entropy, ctx.floor), None, None


policy_fwd.register_autograd(_backward, setup_context=_setup)


@register("policy_logprob", "triton")
def policy_logprob(logits: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """``reference.policy_logprob``."""
    if not supported(logits):
        return reference.policy_logprob(logits, floor)
    return policy_fwd(logits, None, float(floor))[:2]


@register("policy_sample", "triton")
def policy_sample(logits: Tensor, uniform: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.policy_sample``."""
    if not supported(logits) or uniform.dtype != torch.float32 or logits.shape[-1] > MAX_SORTED:
        return reference.policy_sample(logits, uniform, floor)
    return policy_fwd(logits, uniform, float(floor))
