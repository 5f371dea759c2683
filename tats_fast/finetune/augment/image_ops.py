"""Photometric and geometric operations on groups of video clips, each clip with its own parameter.

A parameter holds for all frames of a clip, and so does a statistic (extremes, histogram, mean):
one per frame would make a still background flicker whenever something bright comes into view.
For clips of one frame the results are Pillow's to within a level, but for ``affine`` half a pixel
around the frame, where we blend with the fill colour and Pillow does not.

Clips are (G, T, H, W, 3) uint8 RGB on any device; results are new. Nothing here waits for the
device. Legend: G clips of a group, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

FILL = (124, 116, 104)
"""The colour outside of a moved frame: ImageNet's mean."""
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def apply_tables(clips: Tensor, tables: Tensor) -> Tensor:
    """Replace value v by ``tables[g, c, v]``: (G, 1 or 3, 256) uint8, 1 for all channels alike."""
    return _looked_up(_planes(clips), tables, clips.shape)


def auto_contrast(clips: Tensor) -> Tensor:
    """v -> floor(255 (v - low) / (high - low)), with the clip's extremes of the channel. A channel
    with one value only is left alone."""
    planes = _planes(clips)
    low, high = (end[..., None] for end in planes.aminmax(dim=2))
    levels = _levels(clips)
    stretched = (levels - low) * 255 // (high - low).clamp_min(1)
    tables = torch.where(high > low, stretched, levels).clamp(0, 255)
    return _looked_up(planes, tables.to(torch.uint8), clips.shape)


def equalize(clips: Tensor) -> Tensor:
    """Spread the values of each channel evenly, by its histogram h over the clip.

    As Pillow has it: with n the count of all values but the greatest and step = floor(n / 255),
    v -> floor((floor(step / 2) + sum_(u < v) h(u)) / step). A channel with step = 0 is left alone.
    """
    planes = _planes(clips)
    counts = torch.zeros(len(clips), 3, 256, dtype=torch.int32, device=clips.device)
    one = torch.ones((), dtype=torch.int32, device=clips.device)
    counts.scatter_add_(2, planes, one.expand(planes.shape))
    levels = _levels(clips)
    greatest = (levels * (counts > 0)).amax(dim=2, keepdim=True)
    below = counts.cumsum(dim=2) - counts
    step = below.gather(2, greatest) // 255
    spread = (step // 2 + below) // step.clamp_min(1)
    tables = torch.where(step > 0, spread, levels).clamp(0, 255)
    return _looked_up(planes, tables.to(torch.uint8), clips.shape)


def adjust_contrast(clips: Tensor, factors: Tensor) -> Tensor:
    """v -> m + factor (v - m), m the clip's mean grey. Factors (G, 1) fp32: 0 is flat, 1 as is."""
    means = clips.flatten(1, 3).float().mean(dim=1)  # (G, 3)
    mean = _grey(means.unbind(-1))[:, None, None]
    tables = torch.lerp(mean, _levels(clips).float(), factors[:, None])
    return apply_tables(clips, _bytes(tables))


def adjust_color(clips: Tensor, factors: Tensor) -> Tensor:
    """v -> grey + factor (v - grey) in each pixel. Factors (G, 1) fp32: 0 is grey, 1 as is."""
    channels = [channel.float() for channel in clips.unbind(-1)]
    grey, factors = _grey(channels), factors[..., None, None]
    return torch.stack([_bytes(torch.lerp(grey, c, factors)) for c in channels], dim=-1)


def adjust_sharpness(clips: Tensor, factors: Tensor) -> Tensor:
    """v -> s + factor (v - s), s the mean of the 3 x 3 pixels around, the own with weight 5 and
    the others with 1. Factors (G, 1) fp32: 0 is smooth, 1 as is. The outermost pixels stay."""
    wide = clips.short()  # 13 * 255 fits
    inner = wide[:, :, 1:-1, 1:-1]
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[:, :, :, :-2] + rows[:, :, :, 1:-1] + rows[:, :, :, 2:]
    smooth = total.add_(inner, alpha=4).float().div_(13)
    result = clips.clone()
    result[:, :, 1:-1, 1:-1] = _bytes(smooth.lerp_(inner.float(), factors[..., None, None, None]))
    return result


def affine(clips: Tensor, coefficients: Tensor) -> Tensor:
    """Take the value at (x, y) from (a x + b y + c, d x + e y + f), bilinear, ``FILL`` outside.

    Args:
        coefficients: (G, 6) fp32, a to f. x to the right and y downwards in pixels from the
            frame's corner, so that pixel (0, 0) has its centre at (0.5, 0.5).
    """
    height, width = clips.shape[2:4]
    a, b, c, d, e, f = coefficients[:, :, None, None].unbind(1)  # (G, 1, 1) each
    x = torch.arange(width, device=clips.device) + 0.5
    y = torch.arange(height, device=clips.device)[:, None] + 0.5
    # Plain products: in a matrix product TF32 or autocast would round positions to tenths of a
    # pixel.
    across, down = a * x + b * y + c, d * x + e * y + f
    grid = torch.stack((across * (2 / width) - 1, down * (2 / height) - 1), dim=-1)
    # All frames are channels of one image, so each position is worked out once.
    images = clips.permute(0, 1, 4, 2, 3).flatten(1, 2).float()  # (G, T * 3, H, W)
    # Outside, grid_sample reads 0.
    for channel, value in enumerate(FILL):
        images[:, channel::3] -= value
    moved = grid_sample(images, grid, align_corners=False)
    for channel, value in enumerate(FILL):
        moved[:, channel::3] += value
    return _bytes(moved).unflatten(1, (-1, 3)).permute(0, 1, 3, 4, 2)


def _planes(clips: Tensor) -> Tensor:
    """(G, 3, T * H * W) int64, as ``gather`` and ``scatter_add_`` want their indices."""
    return clips.flatten(1, 3).transpose(1, 2).long()


def _looked_up(planes: Tensor, tables: Tensor, shape: torch.Size) -> Tensor:
    return tables.expand(-1, 3, -1).gather(2, planes).transpose(1, 2).reshape(shape)


def _levels(clips: Tensor) -> Tensor:
    return torch.arange(256, device=clips.device)


def _grey(channels: Sequence[Tensor]) -> Tensor:
    """Of red, green and blue, fp32 each."""
    red, green, blue = (share * part for share, part in zip(_LUMA, channels, strict=True))
    return red + green + blue


def _bytes(values: Tensor) -> Tensor:
    """Nearest level, halves to the even one. Changes ``values``."""
    return values.round_().clamp_(0, 255).to(torch.uint8)
