"""Which frames of a file make a clip, by number, found without decoding the clip.

A decoder that takes frames by number (DALI) must cut exactly what ``decode_crops`` cuts by time.
That is possible where the packets tell all frames and their times; elsewhere there is no plan, and
the clip is decoded the other way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from tats_fast.data.clip import window_start
from tats_fast.data.video import ATTEMPTS, DecodeError, Timing, open_video

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class Formats:
    """What a decoder takes."""

    pairs: frozenset[tuple[str, str]]
    """(codec, pixel format) in FFmpeg's names."""
    matrices: frozenset[int] | None = None
    """Colour matrices, as numbers of ``AVColorSpace``; none = any."""


@dataclass(frozen=True)
class FramePlan:
    """frames: the T frame numbers of a clip, in order of presentation. width, height: pixels."""

    frames: list[int]
    width: int
    height: int


Choice = Callable[[Timing, list[float]], list[int]]
"""From a file's claims and its frames' times (s, ascending, not empty) to frame numbers."""


def plan_clip(path: str, choose: Choice, formats: Formats) -> FramePlan | None:
    """The frames that ``choose`` takes, or None where they cannot be told.

    Reads the file through once without decoding; a file met for the first time has one frame
    decoded. A file that cannot be read has no plan: ``decode_crops`` says why, and may get on.
    """
    try:
        if not _plain(path, formats):
            return None
        with open_video(path) as (container, stream):
            timing = Timing.of(path, container, stream)
            times = _frame_times(container, stream)
            width, height = stream.codec_context.width, stream.codec_context.height
    except DecodeError:
        return None
    if times is None:
        return None
    return FramePlan(choose(timing, times), width, height)


def choose_frames(
    timing: Timing, times: list[float], num_frames: int, stride: int, window: float
) -> list[int]:
    """Frame numbers of a window over frames shown at ``times`` (s, ascending, not empty).

    The same draws as in ``decode_crops``: the header's count proposes, the frames that exist
    decide, a short video repeats its last frame. 5 frames, stride 2, T=4 -> [0, 2, 4, 4].
    """
    span, total = (num_frames - 1) * stride + 1, len(times)
    frames = timing.frames
    for attempt in range(ATTEMPTS + 1):
        start = window_start(frames, span, window) if attempt < ATTEMPTS else 0
        target = timing.origin + (start - 0.5) / timing.rate
        first = 0 if start == 0 else bisect_left(times, target)
        found = min(span, total - first)
        if found == span or start == 0:
            break
        frames = start + found if found else min(total, start)
    return [min(first + i * stride, first + found - 1) for i in range(num_frames)]


@lru_cache(maxsize=1 << 16)
def _plain(path: str, formats: Formats) -> bool:
    """Whether the file is upright and in one of ``formats``, by its first frame."""
    with open_video(path) as (container, stream):
        context = stream.codec_context
        if (context.codec.canonical_name, context.pix_fmt) not in formats.pairs:
            return False
        # Rotation is a property of the stream that PyAV shows with a frame only.
        frame = next(container.decode(stream), None)
        return (
            frame is not None
            and frame.rotation == 0
            and frame.side_data.get("DISPLAYMATRIX") is None
            and frame.format.name == context.pix_fmt
            and (formats.matrices is None or frame.colorspace in formats.matrices)
            and (frame.width, frame.height) == (context.width, context.height)
        )


def _frame_times(
    container: av.container.InputContainer, stream: av.VideoStream
) -> list[float] | None:
    """When each frame is shown, in s, or None where packets do not tell frames one by one."""
    ticks = []
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.pts is None or packet.is_corrupt or packet.is_discard:
            return None
        ticks.append(packet.pts)
    if len(set(ticks)) < max(1, len(ticks)):
        return None
    unit = float(stream.time_base)
    return [tick * unit for tick in sorted(ticks)]
