"""Hot ops of the training step, each with up to three implementations behind one name.

Installed as ``tats_fast.kernels``; imports nothing of the package. Which implementation runs is
decided per call by ``dispatch`` from the tensors' device and ``TATS_KERNELS``.
"""

from __future__ import annotations

from torch import Tensor

from . import masked_mse as _masked_mse  # noqa: F401  (importing registers the implementations)
from . import reference, trajectory  # noqa: F401  (importing registers the implementations)
from .dispatch import ops, requested_level, resolve, resolved_level, use
from .reference import normalized_patches


def trajectory_attention(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Trajectory tokens (B, N, F, h*d) of q, k, v (B, N, h, d); see ``reference``."""
    return resolve("trajectory_attention", q.device.type)(q, k, v, frames)


def own_frame(y: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, N, F, C) itself and each token's entry for its own frame (B, N, C); ``reference``."""
    return resolve("own_frame", y.device.type)(y)


def trajectory_temporal(
    q2: Tensor, y: Tensor, weight_k: Tensor, weight_v: Tensor | None, bias_v: Tensor | None
) -> Tensor:
    """Attention along each token's trajectory, (B, N, h*d); see ``reference``."""
    return resolve("trajectory_temporal", q2.device.type)(q2, y, weight_k, weight_v, bias_v)


def token_gather(x: Tensor, index: Tensor, positions: Tensor | None = None) -> Tensor:
    """x[b, index] + positions[index], (B, M, C); see ``reference``."""
    return resolve("token_gather", x.device.type)(x, index, positions)


def decoder_assemble(
    visible: Tensor,
    mask_token: Tensor,
    positions: Tensor,
    visible_index: Tensor,
    masked_index: Tensor,
) -> Tensor:
    """[visible + position ; mask token + position], (B, N, C); see ``reference``."""
    op = resolve("decoder_assemble", visible.device.type)
    return op(visible, mask_token, positions, visible_index, masked_index)


def masked_mse(prediction: Tensor, patches: Tensor, masked_index: Tensor) -> Tensor:
    """Per-token error against patch-normalised pixels, (B, M) fp32; see ``reference``."""
    return resolve("masked_mse", prediction.device.type)(prediction, patches, masked_index)


def policy_logprob(logits: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """log p (B, N) and entropy (B,) of the floored softmax; see ``reference``."""
    return resolve("policy_logprob", logits.device.type)(logits, floor)


def policy_sample(log_p: Tensor, uniform: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """Drawn tokens (B, N_v) in order and the rest (B, N_m); see ``reference``."""
    return resolve("policy_sample", log_p.device.type)(log_p, uniform, visible)


__all__ = [
    "decoder_assemble",
    "masked_mse",
    "normalized_patches",
    "ops",
    "own_frame",
    "policy_logprob",
    "policy_sample",
    "requested_level",
    "resolve",
    "resolved_level",
    "token_gather",
    "trajectory_attention",
    "trajectory_temporal",
    "use",
]
