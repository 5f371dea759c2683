"""The token sampler: one block over all tokens, an actor branch and a value branch (TATS).

Legend: B clips, N tokens, C width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tats_fast import kernels
from tats_fast.config import ModelConfig, SamplerConfig
from tats_fast.models.attention import choose_backend
from tats_fast.models.layers import (
    NORM_EPS,
    Block,
    SelfAttention,
    TrajectoryAttention,
    initialize,
)


class Policy(NamedTuple):
    """A distribution over each clip's tokens: ``log_p`` (B, N) fp32 with the uniform floor mixed
    in, its ``entropy`` (B,) in nats, the critic's ``value`` (B,) fp32, and where one was asked
    for, the ``order`` (B, N) int64 of a draw without replacement."""

    log_p: Tensor
    entropy: Tensor
    value: Tensor
    order: Tensor | None = None


class TokenSampler(nn.Module):
    """tokens + own positions -> pre-norm block -> actor logits and critic value.

    Args:
        value_bias: initial output of the critic, the reward's mean, so that the first advantages
            are centred.
    """

    regions = ("score",)

    def __init__(
        self,
        model: ModelConfig,
        config: SamplerConfig,
        value_bias: float = 1.0,
        device_type: str = "cpu",
    ) -> None:
        super().__init__()
        width, heads = model.width, config.heads or model.heads
        self.floor = config.uniform_floor
        self.positions = nn.Parameter(torch.zeros(model.num_tokens, width))
        if config.attention != "joint":
            mixer: nn.Module = TrajectoryAttention(
                width, heads, model.token_frames, config.temporal_value
            )
        else:
            mixer = SelfAttention(width, heads, choose_backend(model.attention, device_type))
        self.block = Block(width, model.mlp_ratio, mixer)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.actor = nn.Linear(width, 1)
        self.critic = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        initialize(self)
        # A policy that starts uniform and a critic that starts at the reward's mean.
        nn.init.normal_(self.actor.weight, std=1e-3)
        nn.init.zeros_(self.critic[-1].weight)
        nn.init.constant_(self.critic[-1].bias, value_bias)

    def forward(self, tokens: Tensor, uniform: Tensor | None = None) -> Policy:
        """Patch tokens (B, N, C), before positions -> ``Policy``; with ``uniform`` noise (B, N) in
        [0, 1) also an order drawn by it."""
        logits, pooled = self.score(tokens)
        order = None
        if uniform is None:
            log_p, entropy = kernels.policy_logprob(logits, self.floor)
        else:
            log_p, entropy, order = kernels.policy_sample(logits, uniform, self.floor)
        value = self.critic(pooled).squeeze(-1)
        return Policy(log_p, entropy, value.float(), order)

    def score(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens (B, N, C) -> the actor's logits (B, N), the critic's input (B, C).

        The latter is the mean over tokens, detached: the critic must not bend the features that
        the actor chooses by.
        """
        features = self.norm(self.block(tokens + self.positions.to(tokens.dtype)))
        return self.actor(features).squeeze(-1), features.detach().mean(dim=1)


def policy_learning_from(
    every: int,
    sampler: TokenSampler,
    tokens: Tensor,
    uniform: Tensor | None = None,
    drawn: Policy | None = None,
) -> Policy:
    """The policy of all clips, of which every n-th, the first among them, has gradients.

    The n-th and not the first part of a batch: so it is the same clips for any number of processes,
    and some of every decoded window's crops.

    Args:
        every: n; divides B.
        tokens: (B, N, C); uniform: (B, N), as for ``TokenSampler.forward``.
        drawn: what the other clips' policy was, which then stays; None = it is computed.
    """
    if every == 1:
        return sampler(tokens, uniform)

    def rest(values: Tensor) -> Tensor:
        return values.unflatten(0, (-1, every))[:, 1:].flatten(0, 1)

    def join(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
        if ours is None:
            return None
        parts = [ours.unsqueeze(1), theirs.unflatten(0, (-1, every - 1))]
        return torch.cat(parts, dim=1).flatten(0, 1)

    # First, since autocast keeps the weights that it has cast, with or without their history.
    learning = sampler(tokens[::every], None if uniform is None else uniform[::every])
    if drawn is None:
        with torch.no_grad():
            others = sampler(rest(tokens), None if uniform is None else rest(uniform))
    else:
        others = Policy(*(rest(part.detach()) for part in drawn[:3]))
    return Policy(*map(join, learning, others))


def resized_positions(table: Tensor, old: ModelConfig, new: ModelConfig) -> Tensor:
    """A sampler's learned positions (N, C) for clips of another size: linear in time, row and
    column between the tokens of the old clip, which cover the same clip."""
    grids = [(m.token_frames, *[m.image_size // m.patch_size] * 2) for m in (old, new)]
    if grids[0] == grids[1]:
        return table
    cube = table.T.unflatten(1, grids[0])[None]
    cube = nn.functional.interpolate(cube, grids[1], mode="trilinear", align_corners=False)
    return cube[0].flatten(1).T.contiguous()
