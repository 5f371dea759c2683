"""Atlases: large pictures made once, from which every surface of every clip is cut.

Legend: A side of the atlas in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

OCTAVES = 7
"""Octaves of noise: blobs of 2, 4, ... 128 pixels."""
SHARPNESS = (0.3, 4.0)
"""Gain before the soft threshold: from cloudy places to places of flat patches with edges."""


def noise_atlas(side: int, generator: torch.Generator) -> Tensor:
    """Noise like natural pictures in two ways: equal variance in every octave (amplitude 1 / f),
    and edges, which a sum of independent octaves has not and a soft threshold brings.

    Args:
        side: A, a multiple of 128.
        generator: on the device of the atlas.

    Returns:
        (3, A, A) fp32: three independent channels of mean 0 and deviation 1.
    """
    atlas = sum(_octave(3, side, 2**octave, generator) for octave in range(1, OCTAVES + 1))
    gain = _octave(1, side, 2**OCTAVES, generator).clamp(-1, 1)  # another place, another look
    low, high = (torch.tensor(bound).log().item() for bound in SHARPNESS)
    gain = torch.exp((low + high) / 2 + (high - low) / 2 * gain)
    return _standardised(torch.tanh(gain * _standardised(atlas)))


def _octave(channels: int, side: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth noise with blobs of ``size`` pixels: (channels, side, side), deviation about 1."""
    cells = side // size
    noise = torch.randn((1, channels, cells, cells), generator=generator, device=generator.device)
    smooth = F.interpolate(noise, (side, side), mode="bicubic", align_corners=False)[0]
    return _standardised(smooth)


def _standardised(atlas: Tensor) -> Tensor:
    mean, deviation = atlas.mean((1, 2), keepdim=True), atlas.std((1, 2), keepdim=True)
    return (atlas - mean) / deviation
