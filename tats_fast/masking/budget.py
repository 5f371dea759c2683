"""How a batch's visible tokens are shared out among its clips.

Legend: B clips, N_v visible tokens per clip on average.
"""

from __future__ import annotations

import torch
from torch import Tensor


def allocate(scores: Tensor, total: int, low: int, high: int) -> Tensor:
    """Whole numbers in [low, high] that add up to ``total``, as near to proportional as that lets.

    n_b = clamp(lambda * s_b, low, high), with the one lambda that gives the total, then rounded by
    largest remainders. Scores (1, 1, 4) with total 12, low 1 and high 10 give (2, 2, 8). Runs on
    the scores' device without asking it for anything.

    Args:
        scores: (B,), positive and finite; anything else counts as the smallest positive number.
        total: between B * low and B * high.

    Returns:
        (B,) int64.
    """
    batch = scores.shape[0]
    assert batch * low <= total <= batch * high
    share = scores.double()
    share = torch.where(torch.isfinite(share) & (share > 0), share, 0).clamp_min(1e-30)
    share = (share / share.max()).clamp_min(1e-12)
    # The sum grows with lambda and bends only where a clip meets a bound: find the last bend that
    # is not above the total, and go on from there in a straight line.
    bends = torch.cat([low / share, high / share]).sort().values
    sums = (bends[:, None] * share).clamp(low, high).sum(dim=1)
    last = (sums <= total).sum(0, keepdim=True).clamp(1, 2 * batch - 1) - 1
    # Picked by gather: indexing with one number of the device would wait for it.
    (left, right), (below, above) = (
        (values.gather(0, last), values.gather(0, last + 1)) for values in (bends, sums)
    )
    part = ((total - below) / (above - below).clamp_min(1e-9)).clamp(0, 1)
    scale = left + (right - left) * part
    exact = (scale * share).clamp(low, high)
    whole = (exact + 1e-9).floor()  # 1e-9: what should be whole must not lose one to rounding
    missing = total - whole.sum()
    # Full clips have no remainder; without the last term they could still be given one by a tie.
    remainder = exact - whole - 2 * (whole >= high)
    rank = remainder.argsort(descending=True, stable=True).argsort()
    return (whole + (rank < missing)).long()
