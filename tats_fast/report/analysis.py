"""Masks, reconstructions and probabilities of single clips, as arrays ready to be drawn.

Legend: T frames of S x S pixels, F token-frames, N tokens, N_v visible, N_m masked, D numbers per
patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.config import RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.masking import split_tokens, visible_tokens
from tats_fast.models import MaskedAutoencoder, TokenSampler, TokenSplit
from tats_fast.models.patchify import motion_energy, patchify, unpatchify
from tats_fast.rl.metrics import lift

SAMPLER = "sampler"  # names the learned sampler's draws, whichever way it was trained
DRAWS = 8  # behind a mean motion lift


@dataclass(frozen=True, kw_only=True)
class DrawAnalysis:
    """One draw of visible tokens and what the autoencoder makes of it."""

    visible: np.ndarray
    """(N_v,) int64, in drawing order."""
    reconstruction: np.ndarray
    """(T, S, S, 3) uint8: the clip, its masked tokens replaced by their prediction."""
    error: np.ndarray
    """(N,) fp32: mean squared error of each masked token's normalised pixels; nan if visible."""
    loss: float
    """Mean error of the masked tokens."""
    motion_lift: float
    """Mean motion of the visible tokens relative to all tokens; 1 = like a random draw."""
    mean_motion_lift: float
    """Mean motion lift of several draws, of which this is the first."""


@dataclass(frozen=True, kw_only=True)
class ClipAnalysis:
    """One clip under several ways to choose its visible tokens."""

    clip: np.ndarray
    """(T, S, S, 3) uint8."""
    draws: dict[str, DrawAnalysis]
    """By strategy; all have the same number of visible tokens."""
    motion: np.ndarray
    """(N,) fp32: motion of each token relative to the clip's mean, which is N p of a ``motion``
    draw; zeros for a still clip."""
    heat: np.ndarray | None
    """(N,) fp32: N p of the sampler, 1 = chance; None without a sampler."""


def default_strategies(config: RunConfig, sampler: TokenSampler | None) -> tuple[str, ...]:
    """The run's own strategy, and random and motion draws to compare it with."""
    own = SAMPLER if sampler is not None else config.masking.strategy
    if own in LEARNED_STRATEGIES:  # a learned strategy whose sampler was not given
        own = "random"
    return tuple(dict.fromkeys((own, "random", "motion")))


@torch.no_grad()
def analyze(
    config: RunConfig,
    mae: MaskedAutoencoder,
    sampler: TokenSampler | None,
    clips: Tensor,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[ClipAnalysis]:
    """Mask and reconstruct clips, each by itself, under the default strategies.

    Args:
        clips: (M, T, S, S, 3) uint8 on the models' device.
        seed: decides every draw; each strategy has random numbers of its own, or what two of them
            have in common would look like a choice.
        draws: draws behind ``mean_motion_lift``, at least 1.

    Raises:
        ValueError: clips of another shape or type than the model's, or ``draws`` below 1.
    """
    model = config.model
    expected = (model.num_frames, model.image_size, model.image_size, 3)
    if clips.dtype != torch.uint8 or clips.dim() != 5 or tuple(clips.shape[1:]) != expected:
        raise ValueError(
            f"expected uint8 clips of shape (M, {', '.join(map(str, expected))}), "
            f"got {clips.dtype} {tuple(clips.shape)}"
        )
    if draws < 1:
        raise ValueError(f"expected draws >= 1, got {draws}")
    names = default_strategies(config, sampler)
    # Tube masks come in whole columns; every other strategy can keep any number of tokens.
    visible = visible_tokens("tube" if "tube" in names else "random", model, config.masking.ratio)
    analyses = []
    for i, clip in enumerate(clips[:, None]):
        patches = patchify(clip, model.tubelet_size, model.patch_size)
        tokens = mae.embed(patches)
        log_p = None if sampler is None else sampler(tokens).log_p
        motion = motion_energy(patches, model.tubelet_size)
        by_name = {}
        for number, name in enumerate(names):
            state = int(np.random.SeedSequence((seed, i, number)).generate_state(1)[0])
            generator = torch.Generator(clip.device).manual_seed(state)
            strategy = "tats" if name == SAMPLER else name
            splits = [
                split_tokens(strategy, model, patches, log_p, visible, generator, tokens)
                for _ in range(draws)
            ]
            lifts = [lift(motion, split.visible_mask).item() for split in splits]
            by_name[name] = _reconstruct(mae, patches, tokens, splits[0], lifts)
        analysis = ClipAnalysis(
            clip=clip[0].cpu().numpy(),
            draws=by_name,
            motion=_array(motion[0] / motion.mean().clamp_min(1e-12)),
            heat=None if log_p is None else _array(model.num_tokens * log_p[0].exp()),
        )
        analyses.append(analysis)
    return analyses


def _reconstruct(
    mae: MaskedAutoencoder,
    patches: Tensor,
    tokens: Tensor,
    split: TokenSplit,
    lifts: list[float],
) -> DrawAnalysis:
    model = mae.config
    prediction = mae.decode(mae.encode(tokens, split), split)
    error = kernels.masked_mse(prediction, patches, split.masked)
    per_token = error.new_full(patches.shape[:2], torch.nan).scatter(1, split.masked, error)
    filled = fill_masked(patches, prediction, split.masked)
    pixels = unpatchify(filled, model.tubelet_size, model.patch_size, model.image_size)
    return DrawAnalysis(
        visible=split.visible[0].cpu().numpy(),
        reconstruction=pixels[0].cpu().numpy(),
        error=_array(per_token[0]),
        loss=error.mean().item(),
        motion_lift=lifts[0],
        mean_motion_lift=sum(lifts) / len(lifts),
    )


def unnormalize(normalized: Tensor, patches: Tensor) -> Tensor:
    """Inverse of ``kernels.normalized_patches``: x (s + 1e-6) + m with each patch's own m and s.

    Args:
        normalized: (..., D) in units of the patch's deviation, floating.
        patches: (..., D) uint8: the patches whose mean and deviation to use.

    Returns:
        (..., D) fp32, pixels in the [0, 1] range, not clamped.
    """
    pixels = patches.float().unflatten(-1, (-1, 3))
    deviation = pixels.var(dim=-2, keepdim=True).sqrt() + 255e-6
    values = normalized.float().unflatten(-1, (-1, 3)) * deviation
    return ((values + pixels.mean(dim=-2, keepdim=True)) / 255).flatten(-2)


def fill_masked(patches: Tensor, prediction: Tensor, masked: Tensor) -> Tensor:
    """Patches whose masked ones are replaced by their prediction.

    Args:
        patches: (B, N, D) uint8; prediction: (B, N_m, D) normalised; masked: (B, N_m).

    Returns:
        (B, N, D) uint8; visible patches exactly as given.
    """
    index = masked[..., None].expand_as(prediction)
    pixels = unnormalize(prediction, patches.gather(1, index)).clamp(0, 1)
    return patches.scatter(1, index, (pixels * 255).round().to(torch.uint8))


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
