"""Sliding windows over a whole video, cut in one decoding pass of any length.

Nothing here asks the container how long the video is, as headers lie: windows are cut while frames
are decoded, and the last one is settled when they end. Of a stride only every ``step``-th frame is
used, step = gcd(stride, hop), as no window needs another; a window's worth of them is in memory.

Legend: T frames of a window, S side of a frame in pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tats_fast.data.clip import centre_crop
from tats_fast.data.opening import DecodeError, open_video
from tats_fast.data.pixels import FrameScaler
from tats_fast.data.pyav import packets_of
from tats_fast.data.timed import frames_by_time, shown_times
from tats_fast.data.video import believable_rate, decoded_frames
from tats_fast.data.views import decode_views, require_counts, segment_views, side_crops


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


def _starts(used: int, span: int, ahead: int) -> list[int]:
    """Where, among ``used`` frames, windows of ``span`` start, one every ``ahead``; never empty."""
    last = used - span
    if last <= 0:
        return [0]
    starts = list(range(0, last + 1, ahead))
    if last - starts[-1] > max(0, ahead - span):
        starts.append(last)
    return starts


def video_windows(
    path: str, num_frames: int, stride: int, hop: int, size: int
) -> Generator[Window, None, Length]:
    """The windows of a video, each as soon as it is decoded.

    A window is ``num_frames`` frames, each ``stride`` after the one before; one starts every
    ``hop`` frames as long as it fits. If more is left at the end than lies between two windows, one
    more ends with the last used frame; every gcd(stride, hop)-th is used. A video shorter than a
    window gives one, which repeats the last frame that falls on its stride, as
    ``views.dense_views`` does.

    T=4, stride 2, hop 8, so frames 0, 2, 4, ... are used: 16 frames -> windows from 0 and 8; 17 to
    18 frames (the last used one is 16) -> 0, 8, 10; 5 frames -> 0.

    Args:
        stride: 0 gives one window with the middle frame of each of ``num_frames`` equal segments,
            for which the packets are counted first; ``hop`` then has no meaning.
        size: S, side of the centre square in pixels.

    Returns:
        How many frames there were.

    Raises:
        DecodeError: the file holds no video, no frame decodes, or decoding fails, also in the
            middle.
    """
    if stride == 0:
        return (yield from _segments(path, num_frames, size))
    step = math.gcd(stride, hop)

    def used(number: int) -> range:
        return range(number // step, number // step + (number % step == 0))

    span, skip = _span(num_frames, stride, step), stride // step
    return (yield from _slide(path, used, num_frames, span, skip, hop // step, size))


def timed_windows(
    path: str, num_frames: int, fps: float, hop: int, size: int
) -> Generator[Window, None, Length]:
    """``video_windows`` of frames taken by time, ``fps`` per second (``timed.frames_by_time``).

    The packets are read first, for their times. Where fewer frames decode, the video ends there.

    Args:
        hop: sampled frames, of which there are ``fps`` per second, between two windows' starts.
    """
    require_counts(frame_of_hop=hop)
    moments = frames_by_time(shown_times(path), fps)

    def used(number: int) -> range:
        return range(bisect_left(moments, number), bisect_right(moments, number))

    return (yield from _slide(path, used, num_frames, num_frames, 1, hop, size))


def _slide(
    path: str,
    used: Callable[[int], range],
    num_frames: int,
    span: int,
    skip: int,
    ahead: int,
    size: int,
) -> Generator[Window, None, Length]:
    """Windows of ``span`` used frames each, of which every ``skip``-th is taken, one every
    ``ahead`` used frames.

    used: from a frame's number to the places that it has among the used frames, if any.
    """
    recent: deque[tuple[int, np.ndarray]] = deque(maxlen=span)  # number and (S, S, 3)
    windows = total = count = 0
    scaler = FrameScaler(size, centre_crop)
    with open_video(path) as (container, stream):
        fps = believable_rate(stream)
        for number, frame in enumerate(decoded_frames(packets_of(container, stream))):
            total = number + 1
            places = used(number)
            if not places:
                continue
            picture = np.empty((size, size, 3), np.uint8)
            scaler.write(frame, picture)
            for place in places:
                count = place + 1
                recent.append((number, picture))
                if place == windows * ahead + span - 1:
                    yield _cut(recent, num_frames, skip)
                    windows += 1
    if not total:
        raise DecodeError(path, "no frame could be decoded")
    for _ in _starts(count, span, ahead)[windows:]:
        yield _cut(recent, num_frames, skip)
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
    """Used frames from a window's first to its last, both counted."""
    return (num_frames - 1) * stride // step + 1


def _cut(recent: deque[tuple[int, np.ndarray]], num_frames: int, skip: int) -> Window:
    """The window of every ``skip``-th of the ``recent`` frames, the last such one repeated."""
    frames = [picture for _, picture in list(recent)[::skip][:num_frames]]
    return Window(recent[0][0], np.stack(frames + frames[-1:] * (num_frames - len(frames))))


def _segments(path: str, num_frames: int, size: int) -> Generator[Window, None, Length]:
    total = 0

    def choose(frames: int) -> list[list[int]]:
        nonlocal total
        total = frames  # asked again if fewer frames decode: the last answer counts
        return segment_views(frames, num_frames, 1)

    views = decode_views(path, choose, side_crops(1), size)
    with open_video(path) as (_, stream):
        fps = believable_rate(stream)
    yield Window(choose(total)[0][0], views[0, 0])
    return Length(total, fps)
