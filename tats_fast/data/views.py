"""Which frames and squares of a video recognition looks at, and decoding all of them at once.

Sampling as in VideoMAE's released protocol: dense clips for Kinetics, UCF101 and HMDB51, one frame
per segment (TSN, Wang et al. 2016) for Something-Something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tats_fast.data.clip import Box, Crop
from tats_fast.data.opening import Deadline, DecodeError, open_video
from tats_fast.data.pixels import FrameScaler
from tats_fast.data.pyav import packets_of
from tats_fast.data.video import count_frames, decoded_frames


def dense_views(total: int, num_frames: int, stride: int, clips: int) -> list[list[int]]:
    """Frame numbers of ``clips`` clips spread evenly over a video of ``total`` frames.

    Every ``stride``-th frame counts, the last one repeated up to ``num_frames``; of these n frames,
    clip k starts int(k (n - num_frames) / (clips - 1)) in. One clip is the middle one.
    10 frames, stride 2, T=3, 2 clips -> [0, 2, 4], [4, 6, 8].
    """
    require_counts(frame_in_the_video=total, frame_of_stride=stride)
    return spread_views(range(0, total, stride), num_frames, clips)


def spread_views(sampled: Sequence[int], num_frames: int, clips: int) -> list[list[int]]:
    """Frame numbers of ``clips`` clips spread evenly over a video's ``sampled`` ones, not empty,
    as in ``dense_views``."""
    require_counts(frame_per_clip=num_frames, clip=clips)
    frames = list(sampled)
    frames += [frames[-1]] * (num_frames - len(frames))
    room = len(frames) - num_frames
    starts = [int(k * room / (clips - 1)) for k in range(clips)] if clips > 1 else [room // 2]
    return [frames[start : start + num_frames] for start in starts]


def segment_views(total: int, num_frames: int, clips: int) -> list[list[int]]:
    """One frame from each of ``num_frames`` equal segments, ``clips`` times, interleaved.

    Clip k takes int((x + k / clips) total / num_frames) of segment x. One clip takes the middles.
    20 frames, T=4, 2 clips -> [0, 5, 10, 15], [2, 7, 12, 17].
    """
    require_counts(frame_in_the_video=total, frame_per_clip=num_frames, clip=clips)
    shares = [k / clips for k in range(clips)] if clips > 1 else [0.5]
    return [random_segments(total, num_frames, [share] * num_frames) for share in shares]


def random_segments(total: int, num_frames: int, places: Sequence[float]) -> list[int]:
    """One frame at a random place of each segment: frame numbers, ascending.

    places: ``num_frames`` numbers in [0, 1). 20 frames, T=4, all places .5 -> [2, 7, 12, 17].
    """
    require_counts(frame_in_the_video=total, frame_per_clip=num_frames)
    length = total / num_frames
    return [int((x + place) * length) for x, place in zip(range(num_frames), places, strict=True)]


def side_crops(crops: int) -> list[Crop]:
    """``crops`` squares of the short side's length, spread evenly along the long side.

    One is the middle. 640x360, 3 crops -> x = 0, 140, 280.
    """
    require_counts(crop=crops)

    def crop(number: int, width: int, height: int) -> Box:
        side, room = min(width, height), abs(width - height)
        start = room * number // (crops - 1) if crops > 1 else room // 2
        return (start, 0, side, side) if width >= height else (0, start, side, side)

    return [partial(crop, number) for number in range(crops)]


def require_counts(**counts: int) -> None:
    """Raise ``ValueError`` unless each is at least 1; their names make the message."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"expected at least 1 {name.replace('_', ' ')}, got {value}")


def decode_views(
    path: str,
    choose: Callable[[int], list[list[int]]],
    crops: Sequence[Crop],
    size: int,
    timeout: float | None = None,
) -> np.ndarray:
    """Decode all clips x crops of a video in one pass: (clips, crops, T, size, size, 3) uint8 RGB.

    The container's packets give the number of frames; if fewer decode, ``choose`` is asked again.

    Args:
        choose: from the number of frames to the frame numbers of each clip, as the functions above.
        crops: as ``decode_crops`` takes them, and so is ``timeout``.

    Raises:
        DecodeError: as ``decode_crops`` does.
    """
    deadline = Deadline(path, timeout)
    total = count_frames(path)
    while total > 0:
        clips = choose(total)
        wanted = {number for clip in clips for number in clip}
        pictures: dict[int, np.ndarray] = {}
        seen = 0
        with open_video(path) as (container, stream):
            scalers = [FrameScaler(size, crop) for crop in crops]
            frames = decoded_frames(packets_of(container, stream), deadline)
            for number, frame in enumerate(frames):
                seen = number + 1
                if number in wanted:
                    picture = np.empty((len(crops), size, size, 3), np.uint8)
                    for scaler, out in zip(scalers, picture, strict=True):
                        scaler.write(frame, out)
                    pictures[number] = picture
                if len(pictures) == len(wanted):
                    stacked = [np.stack([pictures[n] for n in clip], 1) for clip in clips]
                    return np.stack(stacked)
        total = seen
    raise DecodeError(path, "no frame could be decoded")
