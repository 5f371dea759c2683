"""Clips whose frames are taken by time, so many per second, whatever the file's own rate.

The timestamps of the packets say when each frame is shown, also where the rate varies; files
without them count as evenly timed, at the rate that their header claims.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tats_fast.data.clip import Crop, centre_crop
from tats_fast.data.opening import Deadline, DecodeError, open_video
from tats_fast.data.pixels import FrameScaler
from tats_fast.data.plan import timed_packets
from tats_fast.data.pyav import packets_of
from tats_fast.data.segment import Packet
from tats_fast.data.video import KeyframeMissed, Timing, count_frames, decoded_frames, seek_before

if TYPE_CHECKING:
    import av

# Seconds that a frame may come late: some containers count milliseconds.
_LATE = 1e-3


def frames_at_rate(times: Sequence[float], num_frames: int, fps: float, window: float) -> list[int]:
    """Numbers of the frames that are shown at ``num_frames`` moments, 1 / fps s apart.

    A frame is shown until the next one, the last as long as the others on average; after it, it
    goes on being shown. At a constant rate of k fps these are the frames of stride k. Frames at 0,
    1, 2, 3, 10 s, 0.5 fps, T=3, window 0 -> [0, 2, 3].

    Args:
        times: when each frame is shown, s, ascending, not empty.
        window: position of the first moment over the free room in time, in [0, 1).
    """
    start = times[0] + window * max(0.0, _length(times) - (num_frames - 1) / fps)
    return [
        max(0, bisect_right(times, start + number / fps + _LATE) - 1)
        for number in range(num_frames)
    ]


def frames_by_time(times: Sequence[float], fps: float) -> list[int]:
    """Numbers of the frames that are shown at 0, 1 / fps, 2 / fps, ... s from the first one on, as
    long as the video lasts; not empty. At a constant rate of k fps it is every k-th.

    times: as for ``frames_at_rate``. Frames at 0, 1, 2, 3, 10 s, 0.5 fps -> [0, 2, 3, 3, 3, 4, 4].
    """
    length = _length(times)
    # Rounded timestamps must not make another moment where a video ends between two.
    count = max(1, math.ceil((length - 2 * _LATE) * fps))
    return frames_at_rate(times, count, fps, 0.0)


def _length(times: Sequence[float]) -> float:
    """Seconds, with the last frame shown as long as the others on average."""
    length = times[-1] - times[0]
    return length + length / max(1, len(times) - 1)


def shown_times(path: str) -> list[float]:
    """When each frame of a file is shown, s, ascending, by reading it without decoding.

    Raises:
        DecodeError: the file cannot be read, or holds no frame.
    """
    with open_video(path) as (_, stream):
        timing, packets = Timing.of(path, stream), timed_packets(stream, Deadline(path, None))
        tick = float(stream.time_base)
    times = _times(path, timing, packets, tick)
    if not times:
        raise DecodeError(path, "no frame could be decoded")
    return times


def _times(path: str, timing: Timing, packets: list[Packet] | None, tick: float) -> list[float]:
    """Without the packets' own times, evenly and at the header's rate."""
    if packets is None:
        return [number / timing.rate for number in range(count_frames(path))]
    return sorted(packet.pts * tick for packet in packets)


def timed_clip(
    path: str, num_frames: int, fps: float, size: int, window: float = 0.5
) -> np.ndarray:
    """One window with the centre crop: (num_frames, size, size, 3) uint8 RGB, upright.

    Raises ``DecodeError``.
    """
    clips = np.empty((1, num_frames, size, size, 3), np.uint8)
    decode_timed(path, clips, fps, window, [centre_crop])
    return clips[0]


def decode_timed(
    path: str,
    clips: np.ndarray,
    fps: float,
    window: float,
    crops: Sequence[Crop],
    timeout: float | None = None,
) -> None:
    """Decode one window once, and cut all ``crops`` of it into ``clips``: ``video.decode_crops``
    with ``fps``, frames per second, in the place of its stride; further arguments and errors are
    its own. The packets are read once more, for their times."""
    deadline = Deadline(path, timeout)
    with open_video(path) as (_, stream):
        timing, packets = Timing.of(path, stream), timed_packets(stream, deadline)
        tick = float(stream.time_base)
    times = _times(path, timing, packets, tick)
    if times:
        numbers = frames_at_rate(times, clips.shape[1], fps, window)
        if packets is not None and numbers[0] > 0:
            wanted = [times[number] for number in numbers]
            if _from_keyframe(path, clips, wanted, timing.origin, tick / 2, crops, deadline):
                return
        # Some decoders fail behind a seek where they do not with all frames before.
        with open_video(path) as (container, stream):
            frames = decoded_frames(packets_of(container, stream), deadline)
            if _fill(clips, enumerate(frames), numbers, 0, crops):
                return
    raise DecodeError(path, "no frame could be decoded")


def _from_keyframe(
    path: str,
    clips: np.ndarray,
    wanted: list[float],
    origin: float,
    half: float,
    crops: Sequence[Crop],
    deadline: Deadline,
) -> bool:
    """Fill ``clips`` from the keyframe before the window on; whether that went well."""
    import av

    with open_video(path) as (_, stream):
        try:
            frames = seek_before(stream, origin, wanted[0], half, deadline)
            timed = ((frame.time, frame) for frame in frames if frame.time is not None)
            return _fill(clips, timed, wanted, half, crops, exact=True)
        except (av.error.FFmpegError, KeyframeMissed):
            return False


def _fill(
    clips: np.ndarray,
    frames: Iterable[tuple[float, av.VideoFrame]],
    wanted: Sequence[float],
    half: float,
    crops: Sequence[Crop],
    exact: bool = False,
) -> bool:
    """Fill ``clips`` with the ``wanted`` frames by what comes with each frame, its number or its
    time (``half`` may be missing), ascending. Where one is missing the next one stands for it, and
    after the last frame the last.

    Returns:
        Whether there were frames; if ``exact``, whether the first one wanted was among them.
    """
    scalers = [FrameScaler(clips.shape[2], crop) for crop in crops]
    row, last = 0, None

    def write(frame: av.VideoFrame, until: int) -> None:
        for scaler, clip in zip(scalers, clips, strict=True):
            scaler.write(frame, clip[row])
            clip[row + 1 : until] = clip[row]

    for place, frame in frames:
        last = frame
        until = bisect_right(wanted, place + half, lo=row)
        if exact and row == 0 and until > 0 and place > wanted[0] + half:
            return False
        if until > row:
            write(frame, until)
            row = until
        if row == len(wanted):
            return True
    if last is not None and not (exact and row == 0):
        write(last, len(wanted))
        return True
    return False
