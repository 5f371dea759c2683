"""What a worker process does for one window: decode it, or plan it for another decoder."""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tats_fast.config import DataConfig
from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.clip import (
    Box,
    ClipDraw,
    Crop,
    multi_scale_crop,
    random_resized_crop,
    segment_places,
)
from tats_fast.data.lists import Video
from tats_fast.data.opening import DecodeError
from tats_fast.data.order import ClipKey
from tats_fast.data.plan import Formats, FramePlan, choose_frames, plan_clip
from tats_fast.data.timed import decode_timed, frames_at_rate
from tats_fast.data.video import Timing, decode_crops
from tats_fast.data.views import decode_views, random_segments


@dataclass(frozen=True)
class Task:
    """One decoded window: which, at which attempt, into which row of the buffers."""

    key: ClipKey
    row: int
    attempt: int = 0
    host: bool = False
    """Decode here, whatever other decoder there is."""


@dataclass(frozen=True)
class Encoded:
    """A clip left to another decoder: file, frames by number, and per crop box and mirroring."""

    path: str
    plan: FramePlan
    boxes: list[Box]
    flips: list[bool]


ClipConfig = DataConfig | LabelledDataConfig


def training_crop(config: ClipConfig, draw: ClipDraw) -> Crop:
    """The random crop of pretraining (several scales) or of fine-tuning (several aspects too)."""
    if isinstance(config, LabelledDataConfig):
        shape = {"area": config.area, "aspect": config.aspect}
        return partial(random_resized_crop, **shape, draw=draw)
    return partial(multi_scale_crop, scales=config.scales, draw=draw)


class ClipCutter:
    """Cuts the crops of one window as a pure function of (seed, key, attempt) and of the files.

    ``rows`` are buffers of (K, T, S, S, 3) uint8 that forked processes share with their parent.

    Args:
        rows: how many buffers.
        formats: what another decoder takes, if there is one.

    Raises:
        ValueError: the list is empty.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        config: ClipConfig,
        num_frames: int,
        image_size: int,
        seed: int,
        rows: int,
        formats: Formats | None = None,
    ) -> None:
        if not videos:
            raise ValueError("expected at least 1 video, got 0")
        self.paths = [video.path for video in videos]
        # Where each list begins and ends: who stands in is of the same list.
        starts = [n for n, v in enumerate(videos) if n == 0 or v.part != videos[n - 1].part]
        self._bounds = [*starts, len(videos)]
        self.config = config
        self.seed = seed
        self.formats = formats
        shape = (rows, config.repeats, num_frames, image_size, image_size, 3)
        # Anonymous shared memory: /dev/shm, which containers keep small, has no part in it, and a
        # page costs nothing before it is written.
        self._memory = mmap.mmap(-1, int(np.prod(shape)))
        self.rows = np.frombuffer(self._memory, np.uint8).reshape(shape)

    def index(self, task: Task) -> int:
        """Place in the list of a task's video; for attempt >= 1 of its stand-in."""
        index = task.key.index
        if task.attempt > 0:
            draw = ClipDraw.of(self.seed, task.key.epoch, index, task.attempt)
            end = bisect_right(self._bounds, index)
            first, last = self._bounds[end - 1], self._bounds[end]
            index = first + int(draw.substitute * (last - first))
        return index

    def path(self, task: Task) -> str:
        """The file of a task."""
        return self.paths[self.index(task)]

    def __call__(self, task: Task) -> Encoded | str | None:
        """Cut a task. None: done, in its row. A plan: for another decoder. Text: why it failed."""
        repeats = range(self.config.repeats)
        draws = [ClipDraw.of(self.seed, *task.key, task.attempt, repeat) for repeat in repeats]
        path, window = self.path(task), draws[0].window
        crops = [training_crop(self.config, draw) for draw in draws]
        flips = [draw.flip and self.config.flip for draw in draws]
        clips = self.rows[task.row]
        num_frames, timeout = clips.shape[1], self.config.timeout_s
        stride, fps = self.config.stride, self.config.fps

        def segments(total: int) -> list[list[int]]:
            return [random_segments(total, num_frames, places)]

        def choose(timing: Timing, times: list[float]) -> list[int]:
            if stride == 0:
                return segments(len(times))[0]
            if fps is not None:
                return frames_at_rate(times, num_frames, fps, window)
            return choose_frames(timing, times, num_frames, stride, window)

        places = segment_places(self.seed, *task.key, task.attempt, num_frames)
        try:
            if self.formats is not None and not task.host:
                plan = plan_clip(path, choose, self.formats, timeout)
                if plan is not None:
                    boxes = [crop(plan.width, plan.height) for crop in crops]
                    return Encoded(path, plan, boxes, flips)
            if stride == 0:
                clips[...] = decode_views(path, segments, crops, clips.shape[2], timeout)[0]
            elif fps is not None:
                decode_timed(path, clips, fps, window, crops, timeout)
            else:
                decode_crops(path, clips, stride, window, crops, timeout)
        except DecodeError as error:
            return error.reason
        for clip, flip in zip(clips, flips, strict=True):
            if flip:
                clip[...] = clip[:, :, ::-1].copy()
        return None
