"""Exact log-probability of an ordered draw without replacement (Plackett 1975, Luce 1959)."""

from __future__ import annotations

import torch
from torch import Tensor


def ordered_draw_logprob(log_p: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    """log pi(s) = sum_k ( l_{s_k} - logsumexp_{j >= k} l_{s_j} ), j running over all not yet drawn.

    One reversed cumulative log-sum-exp, O(N). With p = (1/2, 1/3, 1/6) the draw (0, 2) has
    probability 1/2 * (1/6) / (1/2) = 1/6.

    Args:
        log_p: (B, N), unnormalised is fine, fp32 or wider.
        order: (B, N) int64, the drawn tokens in the order of drawing, then the others in any.
        counts: (B,) int64, how many were drawn of each clip.

    Returns:
        (B,), in nats.
    """
    ordered = log_p.gather(1, order)
    remaining = ordered.flip(1).logcumsumexp(dim=1).flip(1)
    drawn = torch.arange(order.shape[1], device=order.device) < counts[:, None]
    return ((ordered - remaining) * drawn).sum(dim=1)
