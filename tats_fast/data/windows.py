"""Sliding windows over a whole video, cut in one decoding pass of any length.

Nothing here asks the container how long the video is, as headers lie: windows are cut while frames
are decoded, and the last one is settled when they end. Every ``step``-th frame is kept, step =
gcd(stride, hop), which is each that a window can need; a window's worth of them is in memory.

Legend: T frames of a window, S side of a frame in pixels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tats_fast.data.clip import centre_crop
from tats_fast.data.pixels import FrameScaler
from tats_fast.data.video import MAX_RATE, Deadline, DecodeError, decoded_frames, open_video
from tats_fast.data.views import decode_views, segment_views, side_crops


@dataclass(frozen=True)
class Window:
    """One window of a video."""

    start: int
    """Number of its first frame, counted in decoded frames from 0."""
    clip: np.ndarray
    """(T, S, S, 3) uint8 RGB, upright, centre crop."""


@dataclass(frozen=True)
class Length:
    """How long a video proved to be."""

    frames: int
    fps: float | None
    """Frames per second as its header says, if that is believable."""


def window_starts(total: int, num_frames: int, stride: int, hop: int) -> list[int]:
    """First frames of all windows of a video of ``total`` frames; never empty.

    A window is ``num_frames`` frames, each ``stride`` after the one before; one starts every
    ``hop`` frames as long as it fits. If more is left at the end than lies between two windows, one
    more ends with the last kept frame; kept is every gcd(stride, hop)-th. A video shorter than a
    window gives one, from 0.

    T=4, stride 2, hop 8, so frames 0, 2, 4, ... are kept: 16 frames -> [0, 8]; 17 to 18 frames
    (the last kept one is 16) -> [0, 8, 10]; 5 frames -> [0].
    """
    for name, value in (
        *(("frame in the video", total), ("frame per window", num_frames)),
        *(("frame of stride", stride), ("frame of hop", hop)),
    ):
        if value < 1:
            raise ValueError(f"expected at least 1 {name}, got {value}")
    # From here on all is counted in kept frames.
    step = math.gcd(stride, hop)
    kept, ahead = -(-total // step), hop // step
    span = _span(num_frames, stride, step)
    last = kept - span
    if last <= 0:
        return [0]
    starts = list(range(0, last + 1, ahead))
    if last - starts[-1] > max(0, ahead - span):
        starts.append(last)
    return [start * step for start in starts]


def video_windows(
    path: str, num_frames: int, stride: int, hop: int, size: int
) -> Generator[Window, None, Length]:
    """The windows of a video that start at ``window_starts``, each as soon as it is decoded.

    A video shorter than a window repeats the last frame that falls on the window's stride, as
    ``views.dense_views`` does.

    stride: 0 gives one window with the middle frame of each of ``num_frames`` equal segments, for
        which the packets are counted first; ``hop`` is then not used.
    size: S, side of the centre square in pixels.

    Raises ``DecodeError`` if the file holds no video, if no frame decodes, or if decoding fails,
    also in the middle. Returns how many frames there were.
    """
    if stride == 0:
        return (yield from _segments(path, num_frames, size))
    step = math.gcd(stride, hop)
    span = _span(num_frames, stride, step)
    kept: deque[np.ndarray] = deque(maxlen=span)  # the last kept frames, (S, S, 3) each
    given = total = 0
    scaler = FrameScaler(size, centre_crop)
    with open_video(path) as (container, stream):
        fps = _rate(stream.average_rate)
        for number, frame in enumerate(decoded_frames(container, stream, Deadline(path, None))):
            total = number + 1
            if number % step:
                continue
            picture = np.empty((size, size, 3), np.uint8)
            scaler.write(frame, picture)
            kept.append(picture)
            if number // step == given * hop // step + span - 1:
                yield Window(given * hop, _cut(kept, num_frames, stride // step))
                given += 1
    if not total:
        raise DecodeError(path, "no frame could be decoded")
    for start in window_starts(total, num_frames, stride, hop)[given:]:
        yield Window(start, _cut(kept, num_frames, stride // step))
    return Length(total, fps)


def window_batches(events: Iterable[tuple[Any, Any]], size: int) -> Iterator[list[tuple[Any, Any]]]:
    """All (item, event) in their order, cut behind every ``size``-th event that is a ``Window``."""
    batch, windows = [], 0
    for item, event in events:
        batch.append((item, event))
        windows += isinstance(event, Window)
        if windows == size:
            yield batch
            batch, windows = [], 0
    if batch:
        yield batch


def _span(num_frames: int, stride: int, step: int) -> int:
    """Kept frames from a window's first to its last, both counted."""
    return (num_frames - 1) * stride // step + 1


def _cut(kept: deque[np.ndarray], num_frames: int, stride: int) -> np.ndarray:
    """(T, S, S, 3): every ``stride``-th of the ``kept`` frames, the last such one repeated."""
    frames = list(kept)[::stride][:num_frames]
    return np.stack(frames + frames[-1:] * (num_frames - len(frames)))


def _segments(path: str, num_frames: int, size: int) -> Generator[Window, None, Length]:
    total = 0

    def choose(frames: int) -> list[list[int]]:
        nonlocal total
        total = frames  # asked again if fewer frames decode: the last answer counts
        return segment_views(frames, num_frames, 1)

    views = decode_views(path, choose, side_crops(1), size)
    with open_video(path) as (_, stream):
        fps = _rate(stream.average_rate)
    yield Window(choose(total)[0][0], views[0, 0])
    return Length(total, fps)


def _rate(claimed: float | None) -> float | None:
    return float(claimed) if claimed is not None and 0 < claimed <= MAX_RATE else None
