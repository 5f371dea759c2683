"""Decoding one clip of a video file on the CPU with PyAV.

Headers lie and timestamps jump (HMDB51, UCF101, web videos), so the header only proposes where a
window starts; the frames themselves are taken contiguously in the decoder's order, and a window
that runs past the end is drawn again over the frames that proved to exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from tats_fast.data.clip import Crop, centre_crop, window_start
from tats_fast.data.opening import Deadline, DecodeError, open_video
from tats_fast.data.pixels import FrameScaler
from tats_fast.data.pyav import packets_of

if TYPE_CHECKING:
    import av

# Seconds before the window at which to look for a keyframe, at last at the start of the video. Some
# demuxers seek by decoding time, and an open GOP drops its leading frames: then the first frame
# comes too late, and we go back. So we do where a picture marked as a keyframe is none.
_SEEK_MARGINS = (0.0, 1.0, 10.0, math.inf)
# Frames per second above this are a container's clock (1000 in FLV and MKV), not a frame rate.
MAX_RATE = 250.0
# Windows tried before the start of the video is taken.
_ATTEMPTS = 3


def load_clip(path: str, num_frames: int, stride: int, size: int) -> np.ndarray:
    """The centre window and centre crop of a video: (num_frames, size, size, 3) uint8 RGB.

    Raises ``DecodeError``.
    """
    return decode_window(path, num_frames, stride, size)


def decode_window(
    path: str,
    num_frames: int,
    stride: int,
    size: int,
    window: float = 0.5,
    crop: Crop = centre_crop,
) -> np.ndarray:
    """Decode one contiguous window with one crop: (num_frames, size, size, 3) uint8 RGB, upright.

    Arguments and errors: as ``decode_crops``.
    """
    clips = np.empty((1, num_frames, size, size, 3), np.uint8)
    decode_crops(path, clips, stride, window, [crop])
    return clips[0]


class KeyframeMissed(Exception):
    """No seek landed on a keyframe before the frame wanted."""


def decode_crops(
    path: str,
    clips: np.ndarray,
    stride: int,
    window: float,
    crops: Sequence[Crop],
    timeout: float | None = None,
) -> None:
    """Decode one contiguous window once, and cut all ``crops`` of it into ``clips``.

    A video shorter than the window repeats its last frame. Decoding starts at the keyframe before
    the window and stops with it; where that fails it starts with the file, as ``verify`` does.

    Args:
        clips: (len(crops), T, S, S, 3) uint8, filled with RGB, upright; undefined after an error.
        stride: decoded frames from one of the T frames to the next.
        window: position of the window over the free room in time, in [0, 1).
        crops: boxes of the upright frame, each scaled to the square, not keeping its aspect.
        timeout: seconds after which decoding is given up between two packets; none = never.

    Raises:
        DecodeError: the file holds no video, no frame decodes, decoding fails inside the window,
            or it takes too long.
    """
    import av

    span = (clips.shape[1] - 1) * stride + 1
    deadline = Deadline(path, timeout)

    def cut(length: int | None, seeks: bool) -> tuple[int, int | None]:
        with open_video(path) as (_, stream):
            timing = Timing.of(path, stream)
            start = window_start(timing.frames if length is None else length, span, window)
            scalers = [FrameScaler(clips.shape[2], crop) for crop in crops]
            frames = _frames_from(stream, timing, start, deadline, seeks)
            try:
                return start, _fill(clips, frames, stride, scalers)
            except (av.error.FFmpegError, KeyframeMissed):
                if not seeks or start == 0:
                    raise
        return start, None

    def decode(length: int | None) -> tuple[int, int]:
        start, seen = cut(length, seeks=True)
        # Some decoders fail behind a seek where they do not with all frames before.
        return (start, seen) if seen is not None else cut(length, seeks=False)

    if fit_window(span, decode, lambda: count_frames(path)) == 0:
        raise DecodeError(path, "no frame could be decoded")


def fit_window(
    span: int, look: Callable[[int | None], tuple[int, int]], count: Callable[[], int]
) -> int:
    """Draw a window of ``span`` frames again until it lies in what there is of a video.

    The header's length proposes; after a few windows that run past the end, the start is taken.

    Args:
        look: places the window in a video of so many frames, None = as many as its header claims;
            returns its first frame, and how many of its frames there are.
        count: frames in the file, asked where a window holds none.

    Returns:
        How many frames of the last window there are.
    """
    known: int | None = None
    for _ in range(_ATTEMPTS):
        start, length = look(known)
        if length == span or start == 0:
            return length
        known = start + length if length else min(count(), start)
    return look(0)[1]


def _fill(
    clips: np.ndarray,
    frames: Iterator[av.VideoFrame],
    stride: int,
    scalers: Sequence[FrameScaler],
) -> int:
    """Fill ``clips`` with every ``stride``-th frame, the last repeated; returns frames seen."""
    num_frames = clips.shape[1]
    span = (num_frames - 1) * stride + 1
    seen, last = 0, None
    for seen, last in enumerate(islice(frames, span), start=1):
        if (seen - 1) % stride == 0:
            for scaler, clip in zip(scalers, clips, strict=True):
                scaler.write(last, clip[(seen - 1) // stride])
    if 0 < seen < span:
        missing = (seen - 1) // stride + 1
        for scaler, clip in zip(scalers, clips, strict=True):
            scaler.write(last, clip[missing])
            clip[missing + 1 :] = clip[missing]
    return seen


@dataclass(frozen=True)
class Timing:
    """What the container claims: first timestamp in s, frames per second, number of frames."""

    origin: float
    rate: float
    frames: int

    @classmethod
    def of(cls, path: str, stream: av.VideoStream) -> Timing:
        seconds = (stream.container.duration or 0) / 1e6
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        rate, frames = believable_rate(stream), stream.frames
        if frames <= 0:  # WebM, MPEG and fragmented MP4 do not say
            frames = round(seconds * rate) if rate and seconds > 0 else count_frames(path)
        if rate is None:
            rate = frames / seconds if frames > 0 and seconds > 0 else 25.0
        return cls(float((stream.start_time or 0) * stream.time_base), rate, frames)


def believable_rate(stream: av.VideoStream) -> float | None:
    """Frames per second as the header claims, unless it has none or a container's clock."""
    rate = float(stream.average_rate or 0)
    return rate if 0 < rate <= MAX_RATE else None


def count_frames(path: str) -> int:
    """Frames that a file shows, by reading it through without decoding."""
    with open_video(path) as (container, stream):
        packets = packets_of(container, stream)
        # Decoders swallow what an edit list leaves out.
        return sum(packet.size > 0 and not packet.is_discard for packet in packets)


def _frames_from(
    stream: av.VideoStream, timing: Timing, start: int, deadline: Deadline, seeks: bool
) -> Iterator[av.VideoFrame]:
    """Frames in decoder order from number ``start`` on, which is found by time.

    Damage on the way to ``start`` gives no frame, so that the caller draws an earlier window.

    Args:
        seeks: begin at a keyframe before ``start`` rather than with the file.

    Raises:
        KeyframeMissed: as ``seek_before``.
    """
    import av

    if start == 0:
        yield from decoded_frames(packets_of(stream.container, stream), deadline)
        return
    half = 0.5 / timing.rate
    target = timing.origin + start / timing.rate
    try:
        if seeks:
            frames = seek_before(stream, timing.origin, target, half, deadline)
        else:
            frames = decoded_frames(packets_of(stream.container, stream), deadline)
        first = next((f for f in frames if f.time is None or f.time >= target - half), None)
    except av.error.FFmpegError:
        return
    if first is not None:
        yield first
        yield from frames


def seek_before(
    stream: av.VideoStream, origin: float, target: float, half: float, deadline: Deadline
) -> Iterator[av.VideoFrame]:
    """Frames from a keyframe on whose first frame is not later than ``target`` s.

    Args:
        origin: time of the file's first frame, s.
        half: what ``target`` may be late, s.

    Raises:
        KeyframeMissed: none was found. MPEG-TS is sought by the times of packets, and with B-frames
            the first packet's lies before the first frame's.
    """
    for margin in _SEEK_MARGINS:
        time = min(target, max(origin, target - margin))
        stream.container.seek(round(time / stream.time_base), stream=stream)
        frames = decoded_frames(packets_of(stream.container, stream), deadline, lenient=True)
        first = next(frames, None)
        if first is None:
            continue
        if stands_alone(first) and (first.time is None or first.time <= target + half):
            return chain((first,), frames)
    raise KeyframeMissed


def stands_alone(frame: av.VideoFrame) -> bool:
    """Whether no other picture is needed to decode this one, as far as its codec says."""
    from av.video.frame import PictureType

    return frame.key_frame or frame.pict_type in (PictureType.NONE, PictureType.I)


def decoded_frames(
    packets: Iterable[av.Packet], deadline: Deadline | None = None, lenient: bool = False
) -> Iterator[av.VideoFrame]:
    """The frames of packets of one stream, up to where a truncated file ends.

    Args:
        packets: as ``packets_of`` gives them.
        deadline: the end of the time that they may take; none = no limit.
        lenient: ignore errors up to the first frame: a seek may land on one that cannot stand
            alone.
    """
    import av

    for packet in packets:
        if deadline is not None:
            deadline.check()
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if packet.is_corrupt:  # cut short: the video ends here
                return
            if not lenient:
                raise
            continue
        for frame in frames:
            lenient = False
            yield frame
