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
from tats_fast.data.limits import is_image
from tats_fast.data.opening import Deadline, DecodeError, open_video
from tats_fast.data.pyav import codec_name, packets_of
from tats_fast.data.segment import Packet, Segment, cut_segment
from tats_fast.data.video import Timing, fit_window

if TYPE_CHECKING:
    import av


# Codecs that show pictures in the order in which they are decoded. AVI tells the latter alone.
_IN_ORDER = ("mjpeg", "vp8", "vp9")


@dataclass(frozen=True)
class Formats:
    """What a decoder takes."""

    pairs: frozenset[tuple[str, str]]
    """(codec, pixel format) in FFmpeg's names."""
    matrices: frozenset[int] | None = None
    """Colour matrices, as numbers of ``AVColorSpace``; none = any."""


@dataclass(frozen=True)
class FramePlan:
    """frames: the T frame numbers of a clip in its file, in order of presentation. width, height:
    pixels. segment: what the other decoder gets of the file."""

    frames: list[int]
    width: int
    height: int
    segment: Segment


Choice = Callable[[Timing, list[float]], list[int]]
"""From a file's claims and its frames' times (s, ascending, not empty) to frame numbers."""


def plan_clip(
    path: str, choose: Choice, formats: Formats, timeout: float | None = None
) -> FramePlan | None:
    """The frames that ``choose`` takes, or None where packets do not show which they are.

    Reads the file to the clip's end twice without decoding it, except for one frame of a file met
    for the first time and the clip's keyframes. A file that cannot be read has no plan:
    ``decode_crops`` says why, or succeeds.

    timeout: seconds after which the file is given up between two packets; none = never.

    Raises:
        DecodeError: it took longer.
    """
    deadline = Deadline(path, timeout)
    try:
        if not _plain(path, formats):
            return None
        with open_video(path) as (_, stream):
            timing = Timing.of(path, stream)
            packets = timed_packets(stream, deadline, edited=False)
            width, height = stream.codec_context.width, stream.codec_context.height
            seconds = float(stream.time_base)
        if packets is None:
            return None
        frames = choose(timing, sorted(packet.pts * seconds for packet in packets))
        segment = cut_segment(path, packets, frames, (width, height), deadline)
    except DecodeError:
        deadline.check()
        return None
    return None if segment is None else FramePlan(frames, width, height, segment)


def choose_frames(
    timing: Timing, times: list[float], num_frames: int, stride: int, window: float
) -> list[int]:
    """Frame numbers of a window over frames shown at ``times`` (s, ascending, not empty).

    The same draws as in ``decode_crops``: the header's count proposes, the frames that exist
    decide, a short video repeats its last frame. 5 frames, stride 2, T=4 -> [0, 2, 4, 4].
    """
    span, total = (num_frames - 1) * stride + 1, len(times)
    first = 0

    def look(length: int | None) -> tuple[int, int]:
        nonlocal first
        start = window_start(timing.frames if length is None else length, span, window)
        target = timing.origin + (start - 0.5) / timing.rate
        first = 0 if start == 0 else bisect_left(times, target)
        return start, min(span, total - first)

    length = fit_window(span, look, lambda: total)
    return [min(first + i * stride, first + length - 1) for i in range(num_frames)]


@lru_cache(maxsize=1 << 16)
def _plain(path: str, formats: Formats) -> bool:
    """Whether the file is upright, in one of ``formats``, and says when its pictures are shown."""
    if is_image(path):
        return False
    with open_video(path) as (container, stream):
        context = stream.codec_context
        codec = codec_name(context)
        if (codec, context.pix_fmt) not in formats.pairs:
            return False
        if container.format.name == "avi" and codec not in _IN_ORDER:
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


def timed_packets(
    stream: av.VideoStream, deadline: Deadline, edited: bool = True
) -> list[Packet] | None:
    """The pictures that a file shows, in its order, or None where packets do not say when.

    edited: leave out what an edit list does; otherwise there is None where one does so.
    """
    packets = []
    for packet in packets_of(stream.container, stream):
        deadline.check()
        if packet.size == 0 or (edited and packet.is_discard):
            continue
        if packet.pts is None or packet.is_corrupt or packet.is_discard:
            return None
        packets.append(Packet(packet.pts, packet.is_keyframe))
    distinct = len({packet.pts for packet in packets})
    return packets if 0 < distinct == len(packets) else None
