"""From reconstruction errors to advantages. Legend: B clips, N tokens.

Per-token quantities are (B, N) and 0 where a token is not scored, so that the same maths serves
clips with different numbers of visible tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tats_fast.config import PPOConfig
from tats_fast.models import Policy, TokenSplit
from tats_fast.rl.ppo import Experience

TINY = 1e-8


class RewardScale(NamedTuple):
    """Running mean and variance of the raw reward: momentum sums and their total weight, 0-d fp32.

    Dividing by ``weight`` removes the pull towards the zeros it started from (as in Adam).
    """

    mean_sum: Tensor
    var_sum: Tensor
    weight: Tensor

    @classmethod
    def initial(cls, device: torch.device | str = "cpu") -> RewardScale:
        """Nothing seen yet."""
        return cls(*(torch.zeros((), device=device) for _ in range(3)))

    def update(self, mean: Tensor, var: Tensor, momentum: float) -> RewardScale:
        """The scale after a batch of this mean and variance; unchanged if one is non-finite."""
        good = torch.isfinite(mean) & torch.isfinite(var)
        new = (mean, var, torch.ones_like(mean))
        return RewardScale(
            *(
                torch.where(good, momentum * old + (1 - momentum) * value, old)
                for old, value in zip(self, new, strict=True)
            )
        )

    @property
    def mean(self) -> Tensor:
        """Running mean of the raw reward."""
        return self.mean_sum / self.weight.clamp_min(TINY)

    @property
    def std(self) -> Tensor:
        """Running deviation of the raw reward."""
        return (self.var_sum / self.weight.clamp_min(TINY)).clamp_min(TINY**2).sqrt()


class RewardStatistics(NamedTuple):
    """Mean and variance of the raw rewards of a batch, 0-d."""

    mean: Tensor
    var: Tensor

    @classmethod
    def of_all(
        cls, parts: Sequence[RewardStatistics], all_mean: Callable[[Tensor], Tensor]
    ) -> RewardStatistics:
        """Those of the whole that micro-batches of equal size make up, on all processes.

        Args:
            all_mean: mean of a tensor over all processes (identity for one).
        """
        means, variances = (torch.stack(values) for values in zip(*parts, strict=True))
        mean = all_mean(means.mean())
        # A mean of squares less a squared mean would lose the digits of a small spread.
        return cls(mean, all_mean((variances + (means - mean).square()).mean()))


def token_rewards(kind: str, error: Tensor, motion: Tensor) -> Tensor:
    """Raw reward of every scored token, (B, N).

    Args:
        kind: ``error``, or ``error_motion`` = error * sqrt(frame difference inside the tubelet);
            for ``change_error`` and ``sparse_change`` the error is already
            ``kernels.change_error``.
        error: (B, N), detached, 0 where not scored: error e_i, or that of the change.
        motion: mean squared frame difference (B, N); read for ``error_motion`` alone.
    """
    return error * motion.sqrt() if kind == "error_motion" else error


def sparsity(raw: Tensor, scored: Tensor) -> Tensor:
    """How much of the say a clip has in ``sparse_change``: min(1, variance / mean^2), (B, 1).

    Args:
        raw: rewards (B, N), 0 where not scored, all alike in a clip where nothing stands out.
        scored: (B, N), 1 where a token is scored, else 0.
    """
    count = scored.sum(dim=1, keepdim=True)
    mean = raw.sum(dim=1, keepdim=True) / count
    var = ((raw - mean).square() * scored).sum(dim=1, keepdim=True) / count
    return (var / mean.square().clamp_min(TINY**2)).clamp_max(1)


def make_experience(
    config: PPOConfig, policy: Policy, split: TokenSplit, raw: Tensor, scale: RewardScale
) -> tuple[Experience, RewardStatistics]:
    """What the sampler learns from: detached old policy, normalised reward, advantage.

    r_i = raw_i / running mean for the token modes, r = - mean_i raw_i / running mean for ``set``;
    A = (r - V_old) / running deviation of r, clamped, of ``sparse_change`` times ``sparsity``
    (docs/method.md, "Advantage").

    Args:
        raw: raw token rewards (B, N), detached, 0 where ``split`` scores nothing.
        scale: of the steps before. Where there was none, nothing can be said of these rewards:
            advantages are 0 and the critic's target is what it said.

    Returns:
        the experience, and what the raw rewards add to the scale.
    """
    scored = split.scored
    per_clip = scored.sum(dim=1, keepdim=True)
    if config.credit == "set":
        rewards, weight = raw.sum(dim=1, keepdim=True) / per_clip, torch.ones_like(per_clip)
    else:
        rewards, weight = raw, scored
    mean = (rewards * weight).sum() / weight.sum()
    var = ((rewards - mean).square() * weight).sum() / weight.sum()
    sign = -1.0 if config.credit == "set" else 1.0
    value, known = policy.value.detach(), scale.weight > 0
    reward = sign * rewards / scale.mean.clamp_min(TINY)
    deviation = (scale.std / scale.mean.clamp_min(TINY)).clamp_min(TINY)
    bound = config.advantage_clip
    advantage = ((reward - value[:, None]) / deviation).clamp(-bound, bound)
    if config.reward == "sparse_change":
        advantage = advantage * sparsity(raw, scored)
    clip_reward = (reward * weight).sum(dim=1) / weight.sum(dim=1)
    # To the last bit: AdamW would make a full step of what rounding leaves.
    advantage = torch.where(known, advantage, 0)
    clip_reward = torch.where(known, clip_reward, value)
    experience = Experience(split, policy.log_p.detach(), value, clip_reward, advantage)
    return experience, RewardStatistics(mean, var)


def initial_value(credit: str) -> float:
    """Mean of the normalised reward, where the critic's bias starts."""
    return -1.0 if credit == "set" else 1.0
