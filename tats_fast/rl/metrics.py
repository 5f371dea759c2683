"""What a sampler is doing, as numbers; each is defined in docs/metrics.md.

Legend: B clips, N = F*P tokens; ``visible_mask`` (B, N) is 1 for visible tokens, else 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lift(quantity: Tensor, visible_mask: Tensor) -> Tensor:
    """Mean over clips of (mean of visible tokens) / (mean of all tokens); 1 = random draw.

    Clips where the quantity is zero everywhere (a still clip's motion) say nothing and are left
    out; 1 if no clip is left.

    Args:
        quantity: non-negative, (B, N); visible_mask: (B, N).
    """
    overall = quantity.mean(dim=1)
    counts = overall > 1e-12
    mean_visible = (quantity * visible_mask).sum(dim=1) / visible_mask.sum(dim=1)
    ratio = mean_visible / overall.clamp_min(1e-12)
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


def frame_spread(visible_mask: Tensor, frames: int) -> Tensor:
    """Entropy of the visible tokens' distribution over the F token-frames, over log F, mean over
    clips: 1 = evenly over time, 0 = all in one frame. visible_mask: (B, N)."""
    if frames == 1:
        return torch.ones((), device=visible_mask.device)
    counts = visible_mask.unflatten(1, (frames, -1)).sum(dim=2)
    share = counts / counts.sum(dim=1, keepdim=True)
    return torch.special.entr(share).sum(dim=1).mean() / math.log(frames)
