"""PPO for a one-step episode: state = a clip's tokens, action = the draw, reward from the error.

Legend: B clips, N tokens, N_v visible, N_m masked and scored. docs/method.md, "Learning the
sampler".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tats_fast.config import PPOConfig
from tats_fast.models import Policy, TokenSplit
from tats_fast.rl.plackett_luce import ordered_draw_logprob

ADAMAE_COEF = 1e-4  # weight of the sampling loss in AdaMAE's released code


class Experience(NamedTuple):
    """One batch as the sampler saw it, all detached.

    ``split`` the draw; ``log_p`` (B, N) and ``value`` (B,) of the policy that drew it; ``reward``
    (B,) each clip's mean normalised reward, the critic's target; ``advantage`` (B, N) per token,
    meaningful where ``split.scored``, or (B, 1) per clip for credit ``set``.
    """

    split: TokenSplit
    log_p: Tensor
    value: Tensor
    reward: Tensor
    advantage: Tensor


class SamplerLoss(NamedTuple):
    """``total`` to differentiate and its detached parts, 0-d."""

    total: Tensor
    policy: Tensor
    value: Tensor
    approx_kl: Tensor
    clip_frac: Tensor


def sampler_loss(config: PPOConfig, policy: Policy, experience: Experience) -> SamplerLoss:
    """L_clip + c_v * 1/2 (V - r)^2 - tau H, means over clips (Schulman et al. 2017, eq. 9)."""
    log_ratio, weight = action_log_ratio(config.credit, policy.log_p, experience)
    surrogate = clipped_surrogate(log_ratio.exp(), experience.advantage, config.clip_eps)
    policy_loss = -(weight * surrogate).sum(dim=1).mean()
    value_loss = 0.5 * (policy.value - experience.reward).square().mean()
    total = (
        policy_loss + config.value_coef * value_loss - config.entropy_coef * policy.entropy.mean()
    )
    with torch.no_grad():
        ratio = log_ratio.exp()
        # Low-variance, non-negative estimate of KL(old || new): E[(ratio - 1) - log ratio].
        approx_kl = (weight * (ratio - 1 - log_ratio)).sum(dim=1).mean()
        clipped = ((ratio - 1).abs() > config.clip_eps).to(weight.dtype)
        clip_frac = (weight * clipped).sum(dim=1).mean()
    return SamplerLoss(total, policy_loss.detach(), value_loss.detach(), approx_kl, clip_frac)


def clipped_surrogate(ratio: Tensor, advantage: Tensor, eps: float) -> Tensor:
    """min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) (Schulman et al. 2017, eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - eps, 1 + eps) * advantage)


def action_log_ratio(credit: str, log_p: Tensor, experience: Experience) -> tuple[Tensor, Tensor]:
    """log(pi_new / pi_old) of each action and each action's weight.

    token: actions are the masked tokens, weighted by N / N_m * p_old(i), so that the sum estimates
        an expectation over the policy and has an interior optimum p ~ exp(A / tau). Dividing by the
        masked tokens' own mass instead (weights that sum to 1) amplifies the advantage whenever the
        visible tokens hold most of the mass, which makes the policy sharper still: it runs away.
    token_uniform: the same with equal weights 1 / N_m. A below-average token is pushed down with
        a force that does not fade as its probability does: no interior optimum.
    set: one action, the ordered draw; its log-probability is divided by N_v, because the sum of
        hundreds of terms would leave the clipping range at the first update.

    Returns:
        (B, N) and (B, N), both 0 at tokens that are not scored, or (B, 1) and (B, 1) for ``set``.
    """
    split = experience.split
    if credit == "set":
        new, old = (
            ordered_draw_logprob(values, split.order, split.counts) / split.counts
            for values in (log_p, experience.log_p)
        )
        return (new - old)[:, None], torch.ones_like(new)[:, None]
    # Chosen by where, not by a product: a visible token's log-ratio may be anything.
    log_ratio = torch.where(split.scored > 0, log_p - experience.log_p, 0)
    equal = split.scored / split.scored.sum(dim=1, keepdim=True)  # 1 / N_m
    if credit == "token":
        return log_ratio, experience.log_p.exp() * log_p.shape[1] * equal
    return log_ratio, equal


def adamae_loss(log_p: Tensor, split: TokenSplit, error: Tensor) -> Tensor:
    """AdaMAE's sampling loss (Bandara et al. 2023, eq. 3): - mean over masked of log p_i * e_i.

    Not PPO: no baseline, no clipping, no old policy. A masked token with a high error gains
    probability, and so becomes visible more often.

    Args:
        log_p: (B, N); error: (B, N), detached, 0 where not scored.
    """
    return -ADAMAE_COEF * (log_p * error).sum() / split.scored.sum()


def explained_variance(value: Tensor, reward: Tensor) -> Tensor:
    """1 - Var(r - V) / Var(r) over the clips of a batch: 1 perfect critic, 0 no better than a
    constant, below 0 worse. Both (B,); 0 for a batch whose rewards do not vary."""
    spread = reward.var(correction=0)
    share = 1 - (reward - value).var(correction=0) / spread.clamp_min(1e-12)
    return torch.where(spread > 1e-12, share, torch.zeros_like(share))
