"""Which tokens stay visible: one function per strategy, all drawing by Gumbel top-k.

Legend: B clips, F token-frames, P tokens per frame, N = F*P tokens, N_v visible.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.config import ModelConfig
from tats_fast.config.schema import visible_count
from tats_fast.models.mae import TokenSplit
from tats_fast.models.patchify import motion_energy


def visible_tokens(strategy: str, model: ModelConfig, ratio: float) -> int:
    """N_v that ``strategy`` keeps at mask ratio ``ratio``.

    Every strategy keeps int(N (1 - ratio)), but ``tube`` shows the same places in every frame and
    so rounds per frame: at 8 x 196 tokens and .9 it keeps 8 * 19 = 152 where the others keep 156.
    """
    if strategy == "tube":
        return model.token_frames * max(1, visible_count(model.tokens_per_frame, ratio))
    return visible_count(model.num_tokens, ratio)


def split_tokens(
    strategy: str,
    model: ModelConfig,
    patches: Tensor,
    log_p: Tensor | None,
    visible: int,
    generator: torch.Generator,
) -> TokenSplit:
    """Draw the visible tokens of a batch.

    Args:
        patches: (B, N, D); read by ``motion`` alone.
        log_p: the sampler's log-probabilities (B, N); read by the learned strategies alone.
        visible: N_v, from ``visible_tokens``.
        generator: on patches' device; the only source of randomness.
    """
    batch, tokens = patches.shape[:2]
    frames = model.token_frames
    if strategy == "tube":
        places = visible // frames
        uniform = _uniform((batch, tokens // frames), patches, generator)
        return _repeat_over_frames(_draw(torch.zeros_like(uniform), uniform, places), frames)
    uniform = _uniform((batch, tokens), patches, generator)
    if strategy == "random":
        weights = torch.zeros_like(uniform)
    elif strategy == "frame":
        # Whole frames in random order; the last one that fits shows a random part of itself. A
        # frame's rank outweighs any Gumbel noise of its tokens (in fp32 between -4.5 and 17).
        rank = _uniform((batch, frames), patches, generator).argsort(dim=-1).to(uniform.dtype)
        weights = 1e3 * rank.repeat_interleave(tokens // frames, dim=1)
    elif strategy == "motion":
        energy = motion_energy(patches, model.tubelet_size)
        # A still clip has no energy anywhere: the tiny constant makes its draw uniform.
        weights = (energy + 1e-12).log()
    else:
        assert log_p is not None, f"strategy {strategy} draws from a policy"
        weights = log_p
    return _draw(weights, uniform, visible)


def _uniform(shape: tuple[int, int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, device=like.device, generator=generator)


def _draw(log_weights: Tensor, uniform: Tensor, visible: int) -> TokenSplit:
    return TokenSplit(*kernels.policy_sample(log_weights, uniform, visible))


def _repeat_over_frames(split: TokenSplit, frames: int) -> TokenSplit:
    """Places (B, p) inside one frame -> token indices (B, F*p) at that place in every frame."""
    per_frame = split.visible.shape[1] + split.masked.shape[1]
    start = torch.arange(frames, device=split.visible.device)[:, None] * per_frame
    return TokenSplit(*((part[:, None, :] + start).flatten(1) for part in split))
