"""Decoding one clip of a video file on the CPU with PyAV.

Headers lie and timestamps jump (HMDB51, UCF101, web videos), so the header only proposes where a
window starts; the frames themselves are taken contiguously in the decoder's order, and a window
that runs past the end is drawn again over the frames that proved to exist.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from tats_fast.data.clip import Crop, centre_crop, window_start
from tats_fast.data.pixels import FrameScaler

if TYPE_CHECKING:
    import av

# Seconds before the window at which to look for a keyframe. Some demuxers seek by decoding time,
# and an open GOP drops its leading frames: then the first frame comes too late, and we go back.
_SEEK_MARGINS = (0.0, 1.0, 10.0)
# Frames per second above this are a container's clock (1000 in FLV and MKV), not a frame rate.
MAX_RATE = 250.0
# Windows tried before the start of the video is taken.
ATTEMPTS = 3


class DecodeError(Exception):
    """A video that yields no clip: ``path`` and one short ``reason``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


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

    The arguments and errors are those of ``decode_crops``.
    """
    clips = np.empty((1, num_frames, size, size, 3), np.uint8)
    decode_crops(path, clips, stride, window, [crop])
    return clips[0]


def decode_crops(
    path: str,
    clips: np.ndarray,
    stride: int,
    window: float,
    crops: Sequence[Crop],
    timeout: float | None = None,
) -> None:
    """Decode one contiguous window once, and cut all ``crops`` of it into ``clips``.

    clips: (len(crops), T, S, S, 3) uint8, filled with RGB, upright; undefined after an error.
    stride: decoded frames between two of the T frames.
    window: position of the window over the free room in time, in [0, 1).
    crops: boxes of the upright frame that are scaled (not keeping their aspect) to the square.
    timeout: seconds after which decoding is given up between two packets; none = never.

    A video shorter than the window repeats its last frame. Decoding starts at the keyframe before
    the window and stops with it. Raises ``DecodeError`` if the file holds no video, if no frame
    decodes, if decoding fails inside the window, or if it takes too long.
    """
    span = (clips.shape[1] - 1) * stride + 1
    deadline = Deadline(path, timeout)
    known_frames = None
    for attempt in range(ATTEMPTS + 1):
        with open_video(path) as (container, stream):
            timing = Timing.of(path, container, stream)
            frames = timing.frames if known_frames is None else known_frames
            start = window_start(frames, span, window) if attempt < ATTEMPTS else 0
            scalers = [FrameScaler(clips.shape[2], crop) for crop in crops]
            decoded = _frames_from(container, stream, timing, start, deadline)
            found = _fill(clips, decoded, stride, scalers)
        if found == span or start == 0:
            break
        # The video is shorter than its header says: draw again over what there is.
        known_frames = start + found if found else min(_count_packets(path), start)
    if found == 0:
        raise DecodeError(path, "no frame could be decoded")


class Deadline:
    """The end of the time that one file may take."""

    def __init__(self, path: str, timeout: float | None) -> None:
        self.path = path
        self.timeout = timeout
        self._began = time.monotonic()

    def check(self) -> None:
        """Raises ``DecodeError`` once the time is over."""
        if self.timeout is not None and time.monotonic() - self._began > self.timeout:
            raise DecodeError(self.path, f"took longer than {self.timeout:g} s")


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
        kept = (seen - 1) // stride + 1
        for scaler, clip in zip(scalers, clips, strict=True):
            scaler.write(last, clip[kept])
            clip[kept + 1 :] = clip[kept]
    return seen


@contextmanager
def open_video(path: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open the file's video stream; every failure inside the block becomes a ``DecodeError``."""
    import av

    # An absolute name keeps FFmpeg from reading "a:b.mp4" as a protocol; a pipe would block.
    name = os.path.abspath(path)
    if not os.path.exists(name):
        raise DecodeError(path, "missing")
    if not os.path.isfile(name):
        raise DecodeError(path, "not a regular file")
    if os.path.getsize(name) == 0:
        raise DecodeError(path, "empty file")
    try:
        # Real HMDB51 clips carry metadata that is not UTF-8.
        container = av.open(name, metadata_errors="ignore")
    except FileNotFoundError as error:  # deleted since we looked
        raise DecodeError(path, "missing") from error
    except av.error.InvalidDataError as error:
        raise DecodeError(path, "not a video container") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(path, f"cannot be opened: {_reason(error)}") from error
    with container:
        stream = _video_stream(container)
        if stream is None:
            raise DecodeError(path, "no video stream")
        if stream.codec_context is None:
            raise DecodeError(path, "unsupported codec")
        # The loader's workers are the parallelism; threads of their own would only compete.
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        try:
            yield container, stream
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise DecodeError(path, f"decoding error: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """FFmpeg's choice of video stream, or another if that is the cover picture of a song."""
    from av.stream import Disposition

    def is_cover(stream: av.VideoStream) -> bool:
        return bool(stream.disposition & Disposition.attached_pic)

    best = container.streams.best("video")
    if best is not None and not is_cover(best):
        return best
    return next((stream for stream in container.streams.video if not is_cover(stream)), None)


@dataclass(frozen=True)
class Timing:
    """What the container claims: first timestamp in s, frames per second, number of frames."""

    origin: float
    rate: float
    frames: int

    @classmethod
    def of(
        cls, path: str, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Timing:
        seconds = 0.0
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / 1e6
        rate = float(stream.average_rate or 0)
        frames = stream.frames
        if frames <= 0:  # WebM, MPEG and fragmented MP4 do not say
            if 0 < rate <= MAX_RATE and seconds > 0:
                frames = round(seconds * rate)
            else:
                frames = _count_packets(path)
        if not 0 < rate <= MAX_RATE:
            rate = frames / seconds if frames > 0 and seconds > 0 else 25.0
        origin = 0.0
        if stream.start_time is not None:
            origin = float(stream.start_time * stream.time_base)
        return cls(origin, rate, frames)


def _count_packets(path: str) -> int:
    """Frames the container holds, by reading it through without decoding."""
    with open_video(path) as (container, stream):
        return sum(packet.size > 0 for packet in container.demux(stream))


def _frames_from(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    timing: Timing,
    start: int,
    deadline: Deadline,
) -> Iterator[av.VideoFrame]:
    """Frames in decoder order from number ``start`` on, which is found by time.

    Damage on the way to ``start``, or no way to seek, gives no frame, so that the caller draws an
    earlier window.
    """
    import av

    if start == 0:
        yield from decoded_frames(container, stream, deadline)
        return
    half = 0.5 / timing.rate
    target = timing.origin + start / timing.rate
    try:
        frames = _seek(container, stream, target, half, deadline)
        first = next((f for f in frames if f.time is None or f.time >= target - half), None)
    except av.error.FFmpegError:
        return
    if first is not None:
        yield first
        yield from frames


def _seek(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    target: float,
    half: float,
    deadline: Deadline,
) -> Iterator[av.VideoFrame]:
    """Frames from a keyframe on whose first frame is not later than ``target`` s, if there is."""
    frames: Iterator[av.VideoFrame] = iter(())
    for margin in _SEEK_MARGINS:
        container.seek(round((target - margin) / stream.time_base), stream=stream)
        frames = decoded_frames(container, stream, deadline, lenient=True)
        first = next(frames, None)
        if first is None:
            continue
        frames = chain((first,), frames)
        if first.time is None or first.time <= target + half:
            break
    return frames


def decoded_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    deadline: Deadline,
    lenient: bool = False,
) -> Iterator[av.VideoFrame]:
    """Decoded frames. ``lenient`` ignores errors up to the first one: a seek may land on a frame
    that cannot stand alone."""
    import av

    for packet in container.demux(stream):
        deadline.check()
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if packet.is_corrupt:  # cut short: the video ends here, as in a truncated file
                return
            if not lenient:
                raise
            continue
        for frame in frames:
            lenient = False
            yield frame
