"""Augmentation of whole batches on the device: mixup, cutmix, random erasing, and the loss for the
soft labels that come of it. Every frame of a clip is treated alike.

Nothing here waits for the device: what is drawn stays a tensor, and boxes are masks. A generator
must be on the clips' device. Legend: B clips, T frames, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

BETA_TRIES = 256
ERASE_TRIES = 10


def draw_beta(alpha: float, generator: Generator) -> Tensor:
    """One number from Beta(alpha, alpha), 0-d fp64 on the generator's device.

    Joehnk 1964: with u, v uniform, x = u^(1/alpha) and y = v^(1/alpha), x / (x + y) is such a
    number where x + y <= 1. A fixed number of tries needs no look at the device. All 256 fail with
    a probability below 1e-20 at alpha = 2, where 5 of 6 are rejected; less at smaller ones.

    Raises:
        ValueError: alpha outside [0.1, 2], where too many tries fail or powers underflow.
    """
    if not 0.1 <= alpha <= 2:
        raise ValueError(f"alpha={alpha}: expected 0.1 to 2")
    uniform = _uniform(generator, 2, BETA_TRIES).double()
    x, y = uniform.clamp_min(1e-12).pow(1 / alpha)
    accepted = (x + y <= 1).int()
    # argmax: the first of the largest.
    return (x / (x + y)).take_along_dim(accepted.argmax()[None], 0)[0]


def _uniform(generator: Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _box(top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int]) -> Tensor:
    """True inside boxes: four tensors (...) to (..., H, W). A box may reach over the edge."""
    top, left, height, width = (side[..., None] for side in (top, left, height, width))
    row = torch.arange(size[0], device=top.device)
    column = torch.arange(size[1], device=top.device)
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    return rows[..., :, None] & columns[..., None, :]


def mixup_map(size: tuple[int, int], alpha: float, generator: Generator) -> Tensor:
    """Share of the own clip in each pixel, (H, W) fp32: the same lambda ~ Beta(alpha, alpha)
    everywhere (Zhang et al. 2018, "mixup", section 2)."""
    return draw_beta(alpha, generator).float().expand(size)


def cutmix_map(size: tuple[int, int], alpha: float, generator: Generator) -> Tensor:
    """Share of the own clip in each pixel, (H, W) fp32: 0 in a box, 1 elsewhere (Yun et al. 2019,
    "CutMix", section 3.1).

    The box has sides H sqrt(1 - lambda) and W sqrt(1 - lambda), rounded down, lambda ~
    Beta(alpha, alpha), and its centre is uniform over the frame, which cuts what lies outside.
    """
    side = (1 - draw_beta(alpha, generator)).sqrt()
    tall, wide = ((extent * side).long() for extent in size)
    row, column = ((extent * _uniform(generator)).long() for extent in size)
    return 1 - _box(row - tall // 2, column - wide // 2, tall, wide, size).float()


def mixing_map(
    size: tuple[int, int],
    generator: Generator,
    *,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch: float = 0.5,
) -> Tensor:
    """``cutmix_map`` with probability ``switch``, else ``mixup_map``; an alpha of 0 turns its kind
    off, both turn mixing off."""
    if mixup_alpha == 0 and cutmix_alpha == 0:
        return torch.ones(size, device=generator.device)
    if cutmix_alpha == 0:
        return mixup_map(size, mixup_alpha, generator)
    if mixup_alpha == 0:
        return cutmix_map(size, cutmix_alpha, generator)
    cut = cutmix_map(size, cutmix_alpha, generator)
    blend = mixup_map(size, mixup_alpha, generator)
    return torch.where(_uniform(generator) < switch, cut, blend)


def smooth_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """s_k = (1 - smoothing) [k = label] + smoothing / K: labels (B,) int64 -> (B, K) fp32 (Szegedy
    et al. 2016, "Rethinking the Inception Architecture", section 7, with uniform u)."""
    target = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return target.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)


def mix(
    clips: Tensor,
    labels: Tensor,
    num_classes: int,
    generator: Generator,
    *,
    smoothing: float = 0.1,
    **kinds: float,
) -> tuple[Tensor, Tensor]:
    """Mix each clip with its partner by mixup or cutmix, and their labels in the same proportion.

    Batch mode: one kind and one map m (H, W) for the whole batch, the partner of clip b is clip
    B - 1 - b. With s from ``smooth_labels`` and lambda the mean of m, which for cutmix is one less
    the share of the box inside the frame:

        clip_b <- m clip_b + (1 - m) clip_(B-1-b),  target_b = lambda s_b + (1 - lambda) s_(B-1-b).

    The middle clip of an odd batch meets itself and stays as it is.

    Args:
        clips: (B, 3, T, H, W) float, normalised. Not changed.
        labels: (B,) int64.
        generator: on the clips' device.
        kinds: of mixing, for ``mixing_map``.

    Returns:
        Mixed clips, and targets (B, K) fp32 whose rows sum to 1.

    Raises:
        ValueError: clips that are bytes, or an alpha other than 0 outside [0.1, 2].
    """
    _check(clips)
    share = mixing_map((clips.shape[-2], clips.shape[-1]), generator, **kinds)
    mixed = torch.lerp(clips.flip(0), clips, share.to(clips.dtype))
    targets = smooth_labels(labels, num_classes, smoothing)
    return mixed, torch.lerp(targets.flip(0), targets, share.mean())


def erase_boxes(
    clips: int,
    size: tuple[int, int],
    generator: Generator,
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Where to erase, (B, H, W) bool, a box or nothing per clip (Zhong et al. 2020, "Random Erasing
    Data Augmentation", algorithm 1).

    A box covers ``area`` of the frame, uniform, with height / width in ``aspect``, uniform in its
    logarithm so that tall and wide are equally frequent (the paper draws it uniformly). The first
    of ten that is smaller than the frame is placed uniformly inside it; if none is, as hardly ever
    happens, nothing is erased.
    """
    height, width = size
    shares = _uniform(generator, clips, ERASE_TRIES) * (area[1] - area[0]) + area[0]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratios = (_uniform(generator, clips, ERASE_TRIES) * (high - low) + low).exp()
    tall = (shares * height * width * ratios).sqrt().round()
    wide = (shares * height * width / ratios).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(dim=1, keepdim=True)  # of equals, the first
    tall, wide, fits = (x.take_along_dim(first, 1)[:, 0] for x in (tall, wide, fits))
    top = (_uniform(generator, clips) * (height - tall + 1)).floor()
    left = (_uniform(generator, clips) * (width - wide + 1)).floor()
    chosen = fits & (_uniform(generator, clips) < probability)
    return _box(top, left, tall, wide, size) & chosen[:, None, None]


def random_erase(clips: Tensor, generator: Generator, **boxes: Any) -> Tensor:
    """Replace a box of some clips, the same in all frames, by noise from N(0, 1).

    The noise is drawn for every pixel, colour and frame. It has the deviation of normalised pixels.

    Args:
        clips: (B, 3, T, H, W) float, normalised. Not changed.
        generator: on the clips' device.
        boxes: how often and how large, for ``erase_boxes``.

    Raises:
        ValueError: clips that are bytes.
    """
    _check(clips)
    erased = erase_boxes(len(clips), (clips.shape[-2], clips.shape[-1]), generator, **boxes)
    noise = torch.randn(
        clips.shape, generator=generator, device=generator.device, dtype=clips.dtype
    )
    return torch.where(erased[:, None, None], noise, clips)


def _check(clips: Tensor) -> None:
    if clips.ndim != 5 or not clips.is_floating_point():
        raise ValueError(
            f"clips of shape {tuple(clips.shape)} and {clips.dtype}: expected (B, 3, T, H, W), "
            "normalised floats"
        )


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum_k w_k target_k log softmax(logits)_k, mean over clips: (B, K) and (B, K) -> 0-d fp32.

    In fp32 whatever autocast made of the logits. ``weights``: w, (K,) fp32; none = 1 each.
    """
    return cross_entropy(logits.float(), targets, weight=weights)


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """w_k = n / (K n_k) of labels (n,), so that every class has the same total weight: (K,) fp32;
    0 for a class without videos."""
    counts = torch.bincount(labels, minlength=num_classes).float()
    return torch.where(counts > 0, len(labels) / (num_classes * counts.clamp_min(1)), 0.0)
