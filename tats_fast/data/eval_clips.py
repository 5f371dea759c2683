"""Clips of an evaluation: fixed windows, no randomness, no stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from tats_fast.data.lists import Video
from tats_fast.data.video import DecodeError, decode_window

BadFile = tuple[str, str]
"""Path and reason."""


@dataclass(frozen=True)
class EvalClips:
    """Fixed clips of an evaluation.

    clips: (M, T, S, S, 3) uint8 RGB. indices: the M clips' positions in the list of videos.
    bad: (path, reason) of each unreadable file, whose clips are missing here.
    """

    clips: torch.Tensor
    indices: list[int]
    bad: list[BadFile]


def eval_plan(num_videos: int, num_clips: int) -> list[tuple[int, float]]:
    """(index, window) of ``num_clips`` fixed clips over the whole list.

    At most one clip per video: videos spread evenly over the list, centre windows. More: several
    windows per video, spread evenly in time. 2 videos, 3 clips -> (0, .25), (0, .75), (1, .5).
    """
    if num_clips <= num_videos:
        return [(clip * num_videos // num_clips, 0.5) for clip in range(num_clips)]
    plan = []
    for index in range(num_videos):
        count = num_clips // num_videos + (index < num_clips % num_videos)
        plan += [(index, (part + 0.5) / count) for part in range(count)]
    return plan


def load_eval_clips(
    videos: Sequence[Video],
    num_clips: int,
    num_frames: int,
    stride: int,
    image_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    threads: int = 1,
) -> EvalClips:
    """Decode this rank's share of ``eval_plan``: centre crops, no randomness, no stand-ins.

    An unreadable file is reported and its clips left out, so a score never rests on other videos
    than the list names. ``threads`` decode side by side. M may be 0.
    """

    def decode(entry: tuple[int, float]) -> tuple[int, torch.Tensor] | DecodeError:
        index, window = entry
        try:
            frames = decode_window(videos[index].path, num_frames, stride, image_size, window)
        except DecodeError as error:
            return error
        return index, torch.from_numpy(frames)

    plan = eval_plan(len(videos), num_clips)[rank::world_size]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        results = list(pool.map(decode, plan))
    good = [result for result in results if not isinstance(result, DecodeError)]
    bad = {error.path: error.reason for error in results if isinstance(error, DecodeError)}
    empty = torch.empty((0, num_frames, image_size, image_size, 3), dtype=torch.uint8)
    clips = torch.stack([clip for _, clip in good]) if good else empty
    return EvalClips(clips, [index for index, _ in good], list(bad.items()))
