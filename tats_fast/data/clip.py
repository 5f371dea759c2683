"""How one clip is cut from a video, as pure functions of (seed, epoch, index, attempt, repeat).

Every backend draws from here, so CPU and GPU decoding cut the same windows and crops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[int, int, int, int]
"""x, y, width, height of a crop in pixels of the upright frame."""
Crop = Callable[[int, int], Box]
"""Chooses a box for a frame of (width, height)."""

# Fifth word of the seed of further crops and of frames in segments; epoch_order's is 1.
_REPEAT, _SEGMENTS = 2, 3

# Positions of a crop as quarters of the free (horizontal, vertical) room: corners, centre, edge
# middles, and the four points between centre and corners.
_POSITIONS = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 0), (2, 4)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


@dataclass(frozen=True)
class ClipDraw:
    """All random numbers of one clip; the floats are uniform in [0, 1)."""

    window: float
    """Where the window starts, over the free room in time."""
    scales: float
    """Which pair of crop scales, or which area."""
    position: float
    """Which of the 13 crop positions, or which aspect."""
    flip: bool
    """Mirror the clip."""
    substitute: float
    """Which video of the list stands in, for attempt >= 1."""
    across: float
    """Where a crop lies over the free width."""
    down: float
    """Where a crop lies over the free height."""

    @classmethod
    def of(cls, seed: int, epoch: int, index: int, attempt: int = 0, repeat: int = 0) -> ClipDraw:
        """The draw of video ``index`` in ``epoch``; ``attempt`` counts substitutions, ``repeat``
        the crops of one decoded window, all in the ``window`` and ``substitute`` of repeat 0."""
        words = [seed, epoch, index, attempt]
        if repeat:
            words += [_REPEAT, repeat]
        draws = np.random.default_rng(words).random(7).tolist()
        window, scales, position, flip, substitute, across, down = draws
        return cls(window, scales, position, flip < 0.5, substitute, across, down)


def segment_places(seed: int, epoch: int, index: int, attempt: int, num_frames: int) -> list[float]:
    """Where in its segment each frame of a clip is taken, uniform in [0, 1)."""
    words = [seed, epoch, index, attempt, _SEGMENTS]
    return np.random.default_rng(words).random(num_frames).tolist()


def window_start(num_frames: int, span: int, window: float) -> int:
    """First frame of a window of ``span`` frames placed at ``window`` in [0, 1).

    10 frames, span 4, window 0.5 -> 3 of the starts 0..6; a video shorter than the span gives 0.
    """
    return int(window * max(1, num_frames - span + 1))


def multi_scale_crop(width: int, height: int, scales: Sequence[float], draw: ClipDraw) -> Box:
    """Random box with sides ``scale * short side``, the multi-scale crop of TSN and VideoMAE.

    Width and height take scales at most one place apart in ``scales``; the box lies at one of 13
    fixed positions. Returns (x, y, w, h) in pixels, inside the frame.
    """
    short = min(width, height)
    pairs = [
        (across, down)
        for i, across in enumerate(scales)
        for j, down in enumerate(scales)
        if abs(i - j) <= 1
    ]
    across, down = pairs[int(draw.scales * len(pairs))]
    w, h = max(1, int(short * across)), max(1, int(short * down))
    right, below = _POSITIONS[int(draw.position * len(_POSITIONS))]
    return (width - w) * right // 4, (height - h) * below // 4, w, h


def random_resized_crop(
    width: int, height: int, area: Sequence[float], aspect: Sequence[float], draw: ClipDraw
) -> Box:
    """Random box for a resize to a square, Inception's crop (Szegedy et al. 2015, section 6).

    Its area over the frame's is uniform in ``area``, its width over height uniform in its logarithm
    in ``aspect``; a side that would leave the frame ends at its edge. Returns (x, y, w, h), pixels.
    """
    share = area[0] + (area[1] - area[0]) * draw.scales
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** draw.position
    w = min(width, max(1, round((width * height * share * ratio) ** 0.5)))
    h = min(height, max(1, round((width * height * share / ratio) ** 0.5)))
    return int(draw.across * (width - w + 1)), int(draw.down * (height - h + 1)), w, h


def centre_crop(width: int, height: int) -> Box:
    """The largest centred square: the crop of evaluation and pictures."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def placed(width: int, height: int, box: Box, size: int) -> tuple[int, int, int, int]:
    """Where a ``size`` x ``size`` view of ``box`` lies in the scaled frame, in whole pixels.

    Returns (scaled_width, scaled_height, left, top): the frame of (width, height) is scaled to the
    first two, not keeping its aspect, and the square is cut at the last two.
    """
    x, y, w, h = box
    scaled_width = max(size, round(width * size / w))
    scaled_height = max(size, round(height * size / h))
    left = min(round(x * size / w), scaled_width - size)
    top = min(round(y * size / h), scaled_height - size)
    return scaled_width, scaled_height, left, top


def region(
    width: int, height: int, box: Box, size: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The same view as a part of the unscaled frame: its (top, left) and (bottom, right) corners.

    In pixels, not whole ones, of a frame of (width, height); what a resize with a region needs.
    """
    scaled_width, scaled_height, left, top = placed(width, height, box, size)
    across, down = width / scaled_width, height / scaled_height
    return (top * down, left * across), ((top + size) * down, (left + size) * across)
