"""What things look like: colours, pieces of an atlas, shapes. Drawn on the host as numbers, turned
into pictures on the device.

Legend: B clips, O sprites per clip, D side of a sprite in pixels, A side of the atlas.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tats_fast.generated.motions import Draw

MEAN = (0.3 * 255, 0.7 * 255)
CONTRAST = (0.1 * 255, 0.22 * 255)
"""Standard deviation of a surface's values."""
ZOOM = (0.6, 1.6)
"""Pixels of the atlas per pixel of the clip."""
WAVES = 4
"""Harmonics of an outline: 2 to 5 bumps."""
BUMP = 0.3
MARGIN = 1.5
"""Half side of a sprite over the mean radius of its outline."""


class Surface(NamedTuple):
    """A piece of the atlas in colours of its own, for each clip."""

    piece: Tensor
    """(B, 2, 3) from (x, y, 1) in pixels of the clip to pixels of the atlas."""
    colours: Tensor
    """(B, 3, 4) from the three channels of the atlas, and 1, to red, green and blue of 255."""


class Outline(NamedTuple):
    """A closed curve: radius 1 + sum of a_k cos(k angle + phase_k), around a sprite's middle."""

    bumps: Tensor
    """(B, WAVES)."""
    phases: Tensor
    """(B, WAVES) radians."""


def draw_surface(draw: Draw, atlas_side: int, reach: float) -> Surface:
    """A surface at a random place, angle, side and scale of the atlas.

    Args:
        reach: pixels from the surface's middle that will be looked at.
    """
    angle, zoom = draw.uniform(0, 2 * math.pi), draw.log_uniform(*ZOOM)
    mirror = draw.whole(2) * 2 - 1
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    room = max(1.0, atlas_side / 2 - reach * ZOOM[1])
    middle = atlas_side / 2 + draw.uniform(-room, room, 2)
    columns = [torch.stack([cos, sin], 1) * mirror[:, None], torch.stack([-sin, cos], 1), middle]
    piece = torch.stack(columns, dim=2)
    # Mostly light and dark, with two random hues.
    hues = torch.cat([torch.ones(draw.size, 3, 1), 0.5 * draw.normal(3, 2)], dim=2)
    deviation = hues.square().sum(2).mean(1).sqrt()
    hues = hues * (draw.uniform(*CONTRAST) / deviation)[:, None, None]
    colours = torch.cat([hues, draw.uniform(*MEAN, 3, 1)], dim=2)
    return Surface(piece, colours)


def draw_outline(draw: Draw) -> Outline:
    """A round blob of its own."""
    order = torch.arange(2, 2 + WAVES)
    return Outline(
        draw.uniform(-BUMP, BUMP, WAVES) * 2 / order, draw.uniform(0, 2 * math.pi, WAVES)
    )


def outline_area(outline: Outline) -> Tensor:
    """(B,) area inside in units of the squared mean radius: half the integral of radius^2."""
    return math.pi * (1 + outline.bumps.square().sum(1) / 2)


def blob_alpha(outline: Outline, side: int, edge: Tensor) -> Tensor:
    """(B, D, D) opacity, 1 inside, with a soft edge.

    Args:
        side: D; the sprite reaches ``MARGIN`` mean radii from its middle.
        edge: (B,) width of the edge in mean radii.
    """
    around = line(side, outline.bumps.device) * MARGIN
    angle = torch.atan2(around[:, None], around)
    radius = torch.hypot(around[:, None], around)
    rim = torch.ones_like(radius)
    for number in range(WAVES):
        bump, phase = (part[:, number, None, None] for part in outline)
        rim = rim + bump * torch.cos((number + 2) * angle + phase)
    return ((rim - radius) / edge[:, None, None] + 0.5).clamp(0, 1)


def paint(atlas: Tensor, surface: Surface, x: Tensor, y: Tensor) -> Tensor:
    """Colours of a surface at given places.

    Args:
        atlas: (3, A, A).
        x, y: broadcast to (B, T, H, W); pixels of the clip.

    Returns:
        (B, 3, T, H, W) fp32 of 255, not clipped.
    """
    places = affine(surface.piece[:, None], x, y, 2 / atlas.shape[-1], -1.0)
    size, time, height, width, _ = places.shape
    places = places.reshape(1, -1, width, 2)  # the whole batch is one look at one atlas
    cut = F.grid_sample(atlas[None], places, padding_mode="reflection", align_corners=False)
    cut = cut.view(3, size, -1).transpose(0, 1)
    painted = torch.baddbmm(surface.colours[:, :, 3:], surface.colours[:, :, :3], cut)
    return painted.view(size, 3, time, height, width)


def affine(matrix: Tensor, x: Tensor, y: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """scale * (matrix @ (x, y, 1)) + shift.

    Args:
        matrix: (B, T, 2, 3), T may be 1.
        x, y: (B, T, 1, W) and (B, T, H, 1), B and T may be 1.

    Returns:
        (B, T, H, W, 2).
    """
    parts = (matrix * scale).unsqueeze(-1).unsqueeze(-1)
    rows = [
        (parts[:, :, i, 0] * x, parts[:, :, i, 1] * y + (parts[:, :, i, 2] + shift))
        for i in range(2)
    ]
    shape = torch.broadcast_shapes(*(part.shape for part in rows[0]))
    places = torch.empty((*shape, 2), device=matrix.device)
    for i, (along, down) in enumerate(rows):
        torch.add(along, down, out=places[..., i])
    return places


def line(count: int, device: torch.device) -> Tensor:
    """(count,) middles of ``count`` pixels over [-1, 1]."""
    return (2 * torch.arange(count, device=device) + 1) / count - 1
