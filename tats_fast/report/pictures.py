"""Clips, masks, heat maps and errors as uint8 pictures.

Legend: F token-frames of S x S pixels, N tokens, k patch side. One picture per token-frame: the
first frame of its tubelet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tats_fast.config import ModelConfig, RunConfig
from tats_fast.masking import split_tokens, visible_tokens
from tats_fast.models import MaskedAutoencoder, TokenSampler
from tats_fast.models.patchify import patchify
from tats_fast.report.analysis import ClipAnalysis, default_strategies

ERROR_TOP = 1.5  # error at a map's bright end; 1 = painting the token in its own mean colour
VISIBLE_GREY = 128  # of visible tokens in an error map; magma holds no grey
GAP = 208  # grey between the pictures of a strip, seen on a light and on a dark page
HEAT_COLOURS, ERROR_COLOURS = "viridis", "magma"
HIDDEN_TINT = np.array([6.0, 12.0, 48.0])  # tells a hidden token from a visible dark one


class Row(NamedTuple):
    """One row of pictures of a clip: what they show (``group``), for which ``strategy`` ("" = for
    none), and ``pictures`` (F, S, S, 3) uint8."""

    group: str
    strategy: str
    pictures: np.ndarray


def colours(position: np.ndarray, palette: str) -> np.ndarray:
    """Colours (..., 3) fp64 in [0, 255] of positions (...) along one of matplotlib's colour maps;
    the ends of the map beyond [0, 1]."""
    import matplotlib

    return 255 * matplotlib.colormaps[palette](position)[..., :3]


def token_frames(clip: np.ndarray, model: ModelConfig) -> np.ndarray:
    """(T, S, S, 3) -> (F, S, S, 3): the first frame of every tubelet."""
    return clip[:: model.tubelet_size]


def per_pixel(values: np.ndarray, model: ModelConfig) -> np.ndarray:
    """One value per token (N,) -> one per pixel (F, S, S)."""
    side = model.image_size // model.patch_size
    grid = values.reshape(model.token_frames, side, side)
    return grid.repeat(model.patch_size, axis=1).repeat(model.patch_size, axis=2)


def grey(frames: np.ndarray) -> np.ndarray:
    """Luma (ITU-R BT.601) of (..., 3) pictures as (..., 1) fp64."""
    return (frames @ np.array([0.299, 0.587, 0.114]))[..., None]


def masked_frames(clip: np.ndarray, visible: np.ndarray, model: ModelConfig) -> np.ndarray:
    """Visible tokens unchanged, hidden ones as a dark bluish shadow.

    Args:
        clip: (T, S, S, 3) uint8; visible: (N_v,) token indices.

    Returns:
        (F, S, S, 3) uint8.
    """
    frames = token_frames(clip, model)
    visible_mask = np.zeros(model.num_tokens, bool)
    visible_mask[visible] = True
    shadow = _bytes(HIDDEN_TINT + 0.22 * grey(frames))
    return np.where(per_pixel(visible_mask, model)[..., None], frames, shadow)


def heat_top(analyses: list[ClipAnalysis]) -> float:
    """N p at the bright end of the heat maps of one page: the smallest of 2, 4, 8, 16 that leaves
    at most 1 token in 200 beyond it."""
    maps = [a.motion if a.heat is None else a.heat for a in analyses]
    reach = max(np.quantile(values, 0.995) for values in maps)
    return next((top for top in (2.0, 4.0, 8.0) if reach <= top), 16.0)


def heat_overlay(
    clip: np.ndarray, weight: np.ndarray, model: ModelConfig, top: float = 4.0
) -> np.ndarray:
    """Probabilities over a grey copy of the frames: viridis, logarithmic, 1 in the middle.

    Args:
        clip: (T, S, S, 3) uint8; weight: (N,) N p, 1 = chance; top: weight of the bright end, and
        1/top that of the dark end.

    Returns:
        (F, S, S, 3) uint8.
    """
    position = 0.5 + 0.5 * np.log(np.maximum(weight, 1e-6)) / math.log(top)
    colour = colours(per_pixel(position, model), HEAT_COLOURS)
    return _bytes(0.72 * colour + 0.28 * grey(token_frames(clip, model)))


def error_map(error: np.ndarray, model: ModelConfig) -> np.ndarray:
    """Errors (N,) as (F, S, S, 3) uint8: magma up to ``ERROR_TOP``; grey where nan (visible)."""
    values = per_pixel(error, model)
    picture = colours(values / ERROR_TOP, ERROR_COLOURS)
    return _bytes(np.where(np.isnan(values)[..., None], VISIBLE_GREY, picture))


def clip_rows(config: RunConfig, analysis: ClipAnalysis, top: float) -> list[Row]:
    """All pictures of one clip, row by row."""
    model, clip = config.model, analysis.clip
    rows = [Row("frames", "", token_frames(clip, model))]
    if analysis.heat is not None:
        rows.append(Row("probability", "sampler", heat_overlay(clip, analysis.heat, model, top)))
    # Of a still clip every token is drawn alike.
    motion = analysis.motion if analysis.motion.any() else np.ones_like(analysis.motion)
    rows.append(Row("probability", "motion", heat_overlay(clip, motion, model, top)))
    draws = analysis.draws.items()
    rows += [Row("visible tokens", n, masked_frames(clip, d.visible, model)) for n, d in draws]
    rows += [Row("reconstruction", n, token_frames(d.reconstruction, model)) for n, d in draws]
    rows += [Row("error", n, error_map(d.error, model)) for n, d in draws]
    return rows


def fit(pictures: np.ndarray, target: int = 96) -> np.ndarray:
    """(F, S, S, 3) at a whole multiple or fraction of its size, at least ``target`` wide.

    Pixels are repeated, so that masks stay crisp, or averaged: 64 -> 128, 96 -> 96, 224 -> 112.
    """
    side = pictures.shape[1]
    if side < target:
        times = math.ceil(target / side)
        return pictures.repeat(times, axis=1).repeat(times, axis=2)
    step = next(f for f in range(side // target, 0, -1) if side % f == 0)
    blocks = pictures.reshape(len(pictures), side // step, step, side // step, step, 3)
    return _bytes(blocks.mean(axis=(2, 4), dtype=np.float64))


def strip(
    pictures: Sequence[np.ndarray], gutter: int = 2, background: int = 255, axis: int = 1
) -> np.ndarray:
    """(F, S, S, 3) -> (S, F S + (F - 1) gutter, 3): side by side, or along axis 0 one below the
    other."""
    gap = [(0, gutter if i == axis else 0) for i in range(3)]
    padded = [np.pad(picture, gap, constant_values=background) for picture in pictures[:-1]]
    return np.concatenate([*padded, pictures[-1]], axis)


@torch.no_grad()
def mask_strips(
    config: RunConfig, mae: MaskedAutoencoder, sampler: TokenSampler | None, clips: Tensor
) -> list[np.ndarray]:
    """A strip of each clip for TensorBoard: its frames, the visible tokens of one draw and, with a
    sampler, its heat map (N p from 1/4 to 4, the same in every picture of every run).

    The draw's random numbers are fixed, so that two strips of a run differ by the sampler alone;
    the global generators are left as they are.

    Args:
        clips: (M, T, S, S, 3) uint8 on the models' device, M at least 1.

    Returns:
        M pictures (H, W, 3) uint8.
    """
    model = config.model
    patches = patchify(clips, model.tubelet_size, model.patch_size)
    strategy = default_strategies(config, sampler)[0] if sampler is None else "tats"
    embedded = mae.embed(patches)
    log_p = None if sampler is None else sampler(embedded).log_p
    visible = visible_tokens(strategy, model, config.masking.ratio)
    generator = torch.Generator(clips.device).manual_seed(0)
    split = split_tokens(strategy, model, patches, log_p, visible, generator, embedded)
    strips = []
    for i, clip in enumerate(clips.cpu().numpy()):
        tokens = split.visible[i].cpu().numpy()
        rows = [token_frames(clip, model), masked_frames(clip, tokens, model)]
        if log_p is not None:
            weight = (model.num_tokens * log_p[i].exp()).float().cpu().numpy()
            rows.append(heat_overlay(clip, weight, model))
        strips.append(strip([strip(fit(pictures, 64)) for pictures in rows], axis=0))
    return strips


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(values).clip(0, 255).astype(np.uint8)
