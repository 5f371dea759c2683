"""Softmax attention behind one function, with the backends ``flash``, ``sdpa`` and ``eager``."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = ("flash", "sdpa", "eager")


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over all keys.

    Args:
        q, k, v: (B, N, h, d), any strides (views of a fused projection are fine).
        backend: one of ``BACKENDS``. ``flash`` needs 16-bit CUDA tensors; where autocast is off
            and tensors are fp32 it runs SDPA instead, whose maths is the same.

    Returns:
        (B, N, h, d).
    """
    if backend == "flash" and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        return _flash_function()(q, k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # The CPU's SDPA is 1.5 to 5 times slower in bf16 than plain products (N from 43 to 1568).
    if backend == "eager" or (q.device.type == "cpu" and q.dtype == torch.bfloat16):
        scores = (q @ k.mT) * q.shape[-1] ** -0.5
        out = scores.softmax(dim=-1).to(v.dtype) @ v
    else:
        out = scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2)


def choose_backend(requested: str, device_type: str) -> str:
    """The backend to run: ``requested``, or for ``auto`` the first that works on this device.

    Raises:
        ValueError: a requested backend that cannot run here, with the reason and the remedy.
    """
    problem = {name: unavailable(name, device_type) for name in BACKENDS}
    if requested == "auto":
        return next(name for name in BACKENDS if problem[name] is None)
    if problem[requested] is not None:
        raise ValueError(f"model.attention={requested}: {problem[requested]}")
    return requested


def unavailable(backend: str, device_type: str) -> str | None:
    """Why a backend cannot run on ``device_type``; None when it can."""
    if backend != "flash":
        return None
    if device_type != "cuda":
        return "FlashAttention runs on CUDA only; use model.attention=sdpa"
    if not any(_importable(name) for name in ("flash_attn", "flash_attn.cute")):
        return (
            "flash-attn is not installed; pip install 'tats-fast[gpu]' or use model.attention=sdpa"
        )
    return None


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # find_spec imports the parent package
        return False


@cache
def _flash_function():
    """FlashAttention 2's entry, or FlashAttention 4's (``flash_attn.cute``) where only that is."""
    try:
        from flash_attn import flash_attn_func

        return flash_attn_func
    except ImportError:
        from flash_attn.cute import flash_attn_func

        def without_lse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = flash_attn_func(q, k, v)
            return out[0] if isinstance(out, tuple) else out

        return without_lse


def attention_packed(q, k, v, offsets, longest, backend):
    raise NotImplementedError
