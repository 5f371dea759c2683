"""Clips of an evaluation: fixed windows, no randomness, no stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tats_fast.data.lists import Video
from tats_fast.data.opening import BadFiles, DecodeError
from tats_fast.data.timed import timed_clip
from tats_fast.data.video import decode_window
from tats_fast.data.workers.pool import Lost, Workers


@dataclass(frozen=True)
class EvalClips:
    """The fixed clips of an evaluation that could be read."""

    clips: torch.Tensor
    """(M, T, S, S, 3) uint8 RGB."""
    indices: list[int]
    """The M clips' positions in the list of videos."""
    bad: BadFiles
    """Unreadable files, whose clips are missing here."""


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
    stride: int | None,
    image_size: int,
    *,
    fps: float | None = None,
    workers: int = 1,
    timeout: float | None = None,
) -> EvalClips:
    """Decode ``eval_plan`` with centre crops.

    An unreadable file is reported and its clips left out, so a score never rests on other videos
    than the list names. M may be 0.

    Args:
        stride, fps: frames between two sampled ones, or sampled frames per second; the other is
            None.
        workers: processes that decode; a file may kill or outlast its process and costs its own
            clips.
        timeout: seconds that one clip may take; none = no limit.
    """

    def decode(task: tuple[int, float]) -> np.ndarray | str:
        index, window = task
        try:
            path = videos[index].path
            if fps is not None:
                return timed_clip(path, num_frames, fps, image_size, window)
            return decode_window(path, num_frames, stride, image_size, window)
        except DecodeError as error:
            return error.reason

    plan = eval_plan(len(videos), num_clips)
    with Workers(decode, max(1, min(workers, len(plan))), timeout) as pool:
        decoded = dict(pool.map(plan))
    clips, indices, bad = [], [], {}
    for index, window in plan:
        answer = decoded[index, window]
        if isinstance(answer, np.ndarray):
            clips.append(answer)
            indices.append(index)
        else:
            path = videos[index].path
            bad[path] = answer.reason if isinstance(answer, Lost) else answer
    shape = (len(clips), num_frames, image_size, image_size, 3)
    stacked = torch.from_numpy(np.array(clips, np.uint8).reshape(shape))
    return EvalClips(stacked, indices, list(bad.items()))
