"""How the token sampler learns: rewards, advantages, PPO losses, metrics, as pure functions.

Networks and updates belong to ``models`` and ``pretrain``.
"""

from tats_fast.rl.ppo import Experience, SamplerLoss, sampler_loss
from tats_fast.rl.reward import (
    RewardScale,
    RewardStatistics,
    make_experience,
    token_rewards,
)

__all__ = [
    "Experience",
    "RewardScale",
    "RewardStatistics",
    "SamplerLoss",
    "make_experience",
    "sampler_loss",
    "token_rewards",
]
