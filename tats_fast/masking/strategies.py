"""Which tokens stay visible: one order of the tokens per strategy, all by Gumbel noise.

Legend: B clips, F token-frames, P tokens per frame, N = F*P tokens, N_v visible.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.config import MaskingConfig, ModelConfig
from tats_fast.config.schema import visible_count
from tats_fast.masking.budget import allocate
from tats_fast.masking.draws import Uniform, shared_among, uniform_from
from tats_fast.models import Packing, TokenSplit
from tats_fast.models.patchify import motion_energy

EVEREST_SHARE = 0.3
"""Of the tokens, those with the largest change, among which ``everest`` draws."""


def visible_tokens(strategy: str, model: ModelConfig, ratio: float) -> int:
    """N_v that ``strategy`` keeps at mask ratio ``ratio``.

    Every strategy keeps int(N (1 - ratio)), but ``tube`` shows the same places in every frame and
    so rounds per frame: at 8 x 196 tokens and .9 it keeps 8 * 19 = 152 where the others keep 156.
    """
    if strategy == "tube":
        return model.token_frames * max(1, visible_count(model.tokens_per_frame, ratio))
    return visible_count(model.num_tokens, ratio)


def draw_order(
    strategy: str,
    model: ModelConfig,
    patches: Tensor,
    log_p: Tensor | None,
    uniform: Uniform,
    embedded: Tensor | None = None,
    motion: Tensor | None = None,
) -> Tensor:
    """The tokens of every clip in the order of a draw without replacement, (B, N) int64.

    Args:
        patches: (B, N, D); read by ``motion`` and ``motion_bins``, where ``motion`` is None.
        log_p: the sampler's log-probabilities (B, N); read by the learned strategies alone.
        uniform: on patches' device; the only source of randomness.
        embedded: the patches' tokens (B, N, C), before positions; read by ``everest`` alone.
        motion: ``motion_energy`` of the patches (B, N), if it is known already.
    """
    batch, tokens = patches.shape[:2]
    frames = model.token_frames
    if strategy == "tube":
        noise = uniform(batch, tokens // frames)
        places = _gumbel_order(torch.zeros_like(noise), noise)
        start = torch.arange(frames, device=places.device) * places.shape[1]
        return (places[:, :, None] + start).flatten(1)  # a place in all frames, then the next
    noise = uniform(batch, tokens)
    if strategy == "motion_bins":
        energy = motion_energy(patches, model.tubelet_size) if motion is None else motion
        return _alternate_bins(energy, noise, uniform(batch, tokens))
    if strategy == "random":
        weights = torch.zeros_like(noise)
    elif strategy == "frame":
        # Whole frames in random order; the last one that fits shows a random part of itself. A
        # frame's rank outweighs any Gumbel noise of its tokens (in fp32 between -4.5 and 17).
        rank = uniform(batch, frames).argsort(dim=-1).to(noise.dtype)
        weights = 1e3 * rank.repeat_interleave(tokens // frames, dim=1)
    elif strategy == "motion":
        energy = motion_energy(patches, model.tubelet_size) if motion is None else motion
        # A still clip has no energy anywhere: the tiny constant makes its draw uniform.
        weights = (energy + 1e-12).log()
    elif strategy == "everest":
        assert embedded is not None, "strategy everest compares embedded tokens"
        first = math.ceil(EVEREST_SHARE * tokens)
        rank = _falling(token_change(embedded, frames), uniform(batch, tokens)).argsort(dim=1)
        weights = 1e3 * (rank < first).to(noise.dtype)  # outweighs any Gumbel noise, as above
    else:
        assert log_p is not None, f"strategy {strategy} draws from a policy"
        weights = log_p
    return _gumbel_order(weights, noise)


def token_change(embedded: Tensor, frames: int) -> Tensor:
    """Distance of each token to the one at its place in the next frame, the last frame's to the
    frame before; (B, N, C) -> (B, N) fp32, zeros for one frame.

    The redundancy measure of EVEREST (Hwang et al. 2024, ICML), which takes the patch embedding
    that is being trained.
    """
    places = embedded.detach().float().unflatten(1, (frames, -1))
    if frames == 1:
        return torch.zeros(embedded.shape[:2], device=embedded.device)
    change = (places[:, 1:] - places[:, :-1]).norm(dim=-1)
    return torch.cat([change, change[:, -1:]], dim=1).flatten(1)


def split_tokens(
    strategy: str,
    model: ModelConfig,
    patches: Tensor,
    log_p: Tensor | None,
    visible: int,
    generator: torch.Generator,
    embedded: Tensor | None = None,
) -> TokenSplit:
    """``draw_order`` with the same N_v = ``visible`` for every clip, and every masked token
    rebuilt: how a draw is looked at outside training."""
    order = draw_order(strategy, model, patches, log_p, uniform_from(generator), embedded)
    return TokenSplit(order=order, count=visible, length=order.shape[1])


def split_for_training(
    config: MaskingConfig,
    order: Tensor,
    visible: int,
    uniform: Uniform,
    scores: Tensor | None,
) -> TokenSplit:
    """Cut drawn orders (B, N) into visible, masked and left-out tokens as ``config`` says.

    Args:
        order: of the ``config.draws_per_clip`` draws of each clip, a clip's in a row.
        visible: N_v, the average per clip where the budget adapts.
        uniform: chooses the masked tokens that are rebuilt, if not all are.
        scores: (B,), what clips' shares of an adaptive budget follow; None = a fixed budget.
    """
    batch, tokens = order.shape
    length = decoder_length(config, visible, tokens)
    low, high = budget_bounds(config, visible, length)
    counts = None if scores is None else allocate(scores, batch * visible, low, high)
    if length < tokens:
        own = shared_among(uniform, config.draws_per_clip)
        order = _shuffle_masked(order, visible if counts is None else counts[:, None], own)
    if counts is None:
        draws = config.draws_per_clip
        return TokenSplit(order=order, count=visible, length=length, draws=draws)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    return TokenSplit(order=order, count=visible, length=length, packing=Packing(offsets, high))


def decoder_length(config: MaskingConfig, visible: int, tokens: int) -> int:
    """L: visible tokens and those that ``decoder_keep_ratio`` has the decoder rebuild."""
    rebuilt = max(1, math.ceil(config.decoder_keep_ratio * (tokens - visible)))
    return min(tokens, visible + rebuilt)


def budget_bounds(config: MaskingConfig, visible: int, length: int) -> tuple[int, int]:
    """Fewest and most visible tokens of a clip under an adaptive budget; leaves one to rebuild."""
    low = max(1, math.floor(config.budget_min * visible))
    high = min(length - 1, math.ceil(config.budget_max * visible))
    return min(low, visible), max(high, visible)


def _shuffle_masked(order: Tensor, count: int | Tensor, uniform: Uniform) -> Tensor:
    """Uniform order of the masked tokens: after a draw, the next ones are those the policy nearly
    chose, and rebuilding those alone would bias the reward."""
    place = torch.arange(order.shape[1], device=order.device)
    noise = uniform(*order.shape)
    keys = torch.where(place < count, place - float(order.shape[1]), noise)
    return order.gather(1, keys.argsort(dim=1))


def _alternate_bins(energy: Tensor, ties: Tensor, noise: Tensor) -> Tensor:
    """One of the half with more energy, one of the half with less, and so on; within a half in
    random order. All (B, N); ``ties`` shares out tokens of the same energy."""
    tokens = energy.shape[1]
    half, ranked = tokens // 2, _falling(energy, ties)
    bins = [
        ranked[:, part].gather(1, noise[:, part].argsort(dim=1))
        for part in (slice(None, half), slice(half, None))
    ]
    places = torch.arange(tokens, device=energy.device)
    turn = torch.cat([2 * places[:half], 2 * places[: tokens - half] + 1]).argsort()
    return torch.cat(bins, dim=1)[:, turn]


def _falling(values: Tensor, ties: Tensor) -> Tensor:
    """Order of the tokens by falling value; equal ones, of a still clip all, by ``ties``. All
    (B, N)."""
    shuffled = ties.argsort(dim=1)
    falling = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, falling)


def _gumbel_order(log_weights: Tensor, uniform: Tensor) -> Tensor:
    return kernels.policy_sample(log_weights, uniform, 0.0)[2]
