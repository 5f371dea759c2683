"""What a sampler is doing, as numbers; each is defined in docs/metrics.md.

Legend: B clips, N = F*P tokens, N_v visible.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lift(quantity: Tensor, visible: Tensor) -> Tensor:
    """Mean over clips of (mean of visible tokens) / (mean of all tokens); 1 = random draw.

    Clips where the quantity is zero everywhere (a still clip's motion) say nothing and are left
    out; 1 if no clip is left.

    Args:
        quantity: non-negative, (B, N); visible: (B, N_v).
    """
    overall = quantity.mean(dim=1)
    counts = overall > 1e-12
    ratio = quantity.gather(1, visible).mean(dim=1) / overall.clamp_min(1e-12)
    total = (ratio * counts).sum()
    return torch.where(counts.any(), total / counts.sum().clamp_min(1), torch.ones_like(total))


def policy_metrics(log_p: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    """Shape of the policy (B, N), entropy (B,): 0-d tensors.

    ``entropy_frac`` H / log N; ``min_prob`` N * min p; ``visible_prob_max`` largest p;
    ``content_dependence`` (H(mean p) - mean H) / log N: 0 if all clips get the same policy.
    """
    tokens = log_p.shape[1]
    log_tokens = math.log(tokens) if tokens > 1 else 1.0
    log_mean = log_p.logsumexp(dim=0) - math.log(log_p.shape[0])
    entropy_of_mean = -(log_mean.exp() * log_mean).sum()
    return {
        "entropy_frac": entropy.mean() / log_tokens,
        "min_prob": tokens * log_p.amin(dim=1).exp().mean(),
        "visible_prob_max": log_p.amax(dim=1).exp().mean(),
        "content_dependence": (entropy_of_mean - entropy.mean()) / log_tokens,
    }


def frame_spread(visible: Tensor, frames: int, tokens_per_frame: int) -> Tensor:
    """Entropy of the visible tokens' distribution over the F token-frames, over log F, mean over
    clips: 1 = evenly over time, 0 = all in one frame. visible: (B, N_v)."""
    if frames == 1:
        return torch.ones((), device=visible.device)
    frame = visible // tokens_per_frame
    counts = torch.zeros(visible.shape[0], frames, device=visible.device)
    counts.scatter_add_(1, frame, torch.ones_like(frame, dtype=counts.dtype))
    share = counts / visible.shape[1]
    return torch.special.entr(share).sum(dim=1).mean() / math.log(frames)
