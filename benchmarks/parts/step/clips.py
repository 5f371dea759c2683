"""Generated moving textures: clips for machines without a video decoder.

A textured background pans slowly and a textured square crosses it, both by whole-number steps of a
seeded random velocity, so that clips differ, have texture everywhere and motion in some tokens.
What a step costs does not depend on the pixels; losses, masks and motion lift do, which is why a
record says what its clips were.
"""

from __future__ import annotations

import numpy as np

OCTAVES = (4, 16, 64)
NAME = "generated moving textures, not video"


def moving_texture(frames: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """One clip (T, S, S, 3) uint8."""
    background = texture(2 * side, rng)
    square = texture(max(2, side // 3), rng)
    pan = rng.integers(-2, 3, 2)
    start = rng.integers(0, side, 2)
    velocity = rng.choice([-1, 1], 2) * rng.integers(2, 2 + max(1, side // 28), 2)
    clip = np.empty((frames, side, side, 3), np.uint8)
    for index in range(frames):
        shifted = np.roll(background, tuple(index * pan), axis=(0, 1))
        clip[index] = shifted[:side, :side]
        rows, columns = (
            (start[axis] + index * velocity[axis] + np.arange(square.shape[axis])) % side
            for axis in (0, 1)
        )
        clip[index][np.ix_(rows, columns)] = square
    return clip


def texture(side: int, rng: np.random.Generator) -> np.ndarray:
    """Random colours at several scales, coarse ones strongest, (S, S, 3) uint8; tiles."""
    total = np.zeros((side, side, 3))
    for octave in OCTAVES:
        cells = min(octave, side)
        coarse = rng.uniform(-1, 1, (cells, cells, 3))
        total += _stretched(coarse, side) * (OCTAVES[0] / octave) ** 0.5
    total -= total.min()
    return (255 * total / total.max()).astype(np.uint8)


def _stretched(image: np.ndarray, side: int) -> np.ndarray:
    """Linear interpolation to side x side; the last cell runs into the first."""
    for axis in (0, 1):
        cells = image.shape[axis]
        place = np.arange(side) * cells / side
        low = place.astype(int)
        weight = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = (1 - weight) * image.take(low, axis) + weight * image.take((low + 1) % cells, axis)
    return image
