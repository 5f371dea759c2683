"""Hot ops of the training step, each with up to three implementations behind one name.

Installed as ``tats_fast.kernels``; imports nothing of the package. Which implementation runs is
decided per call by ``dispatch`` from the tensors' device and ``TATS_KERNELS``; what each op
computes is said once, in ``reference``.
"""

from __future__ import annotations

from torch import Tensor

from . import composed, reference  # noqa: F401  (importing registers the implementations)
from .dispatch import ops, requested_level, resolve, resolved_level, triton_problem, use
from .reference import batch_rows, normalized_patches


def trajectory_attention(qkv: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """qkv (B, N, 3, h, d) -> trajectory tokens (B, N, F, h*d), own-frame ones (B, N, h*d)."""
    return resolve("trajectory_attention", qkv.device.type)(qkv, frames)


def trajectory_temporal(
    q2: Tensor, y: Tensor, weight_k: Tensor, weight_v: Tensor | None, bias_v: Tensor | None
) -> Tensor:
    """Attention along each token's trajectory, (B, N, h*d); see ``reference``."""
    return resolve("trajectory_temporal", q2.device.type)(q2, y, weight_k, weight_v, bias_v)


def token_gather(x: Tensor, index: Tensor, positions: Tensor | None = None) -> Tensor:
    """x[b, index] + positions[index], (B, M, C) or packed (T, C); see ``reference``."""
    return resolve("token_gather", x.device.type)(x, index, positions)


def decoder_assemble(
    visible: Tensor,
    mask_token: Tensor,
    positions: Tensor,
    order: Tensor,
    offsets: Tensor | None = None,
) -> Tensor:
    """[visible + position ; mask token + position] per clip, (B, L, C); see ``reference``."""
    op = resolve("decoder_assemble", visible.device.type)
    return op(visible, mask_token, positions, order, offsets)


def masked_mse(prediction: Tensor, patches: Tensor, index: Tensor) -> Tensor:
    """Per-token error against patch-normalised pixels, fp32; see ``reference``."""
    return resolve("masked_mse", prediction.device.type)(prediction, patches, index)


def policy_logprob(logits: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """log p (B, N) and entropy (B,) of the floored softmax; see ``reference``."""
    return resolve("policy_logprob", logits.device.type)(logits, floor)


def policy_sample(logits: Tensor, uniform: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """log p (B, N), entropy (B,) and the order (B, N) of a draw; see ``reference``."""
    return resolve("policy_sample", logits.device.type)(logits, uniform, floor)


__all__ = [
    "batch_rows",
    "decoder_assemble",
    "masked_mse",
    "normalized_patches",
    "ops",
    "policy_logprob",
    "policy_sample",
    "requested_level",
    "resolve",
    "resolved_level",
    "token_gather",
    "trajectory_attention",
    "trajectory_temporal",
    "triton_problem",
    "use",
]
