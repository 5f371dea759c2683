"""Exact log-probability of an ordered draw without replacement (Plackett 1975, Luce 1959)."""

from __future__ import annotations

import torch
from torch import Tensor


def ordered_draw_logprob(log_p: Tensor, drawn: Tensor, rest: Tensor) -> Tensor:
    """log pi(s) = sum_k ( l_{s_k} - logsumexp_{j >= k} l_{s_j} ), j running over all not yet drawn.

    One reversed cumulative log-sum-exp, O(N). With p = (1/2, 1/3, 1/6) the draw (0, 2) has
    probability 1/2 * (1/6) / (1/2) = 1/6.

    Args:
        log_p: (B, N), unnormalised is fine, fp32 or wider.
        drawn: (B, N_v) in the order of drawing; rest: (B, N - N_v) in any order.

    Returns:
        (B,), in nats.
    """
    l_drawn = log_p.gather(1, drawn)
    tail = log_p.gather(1, rest).logsumexp(dim=1, keepdim=True)  # -inf for an empty rest
    backwards = torch.cat([tail, l_drawn.flip(1)], dim=1)
    remaining = backwards.logcumsumexp(dim=1)[:, 1:].flip(1)
    return (l_drawn - remaining).sum(dim=1)
