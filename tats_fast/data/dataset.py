"""Clips for training (never stops for a bad file, and says so) and for evaluation (strict)."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from tats_fast.config import DataConfig
from tats_fast.data.clip import ClipDraw, multi_scale_crop
from tats_fast.data.lists import Video
from tats_fast.data.order import ClipKey, StreamBatches
from tats_fast.data.video import DecodeError, decode_window

BadFile = tuple[str, str]
"""Path and reason."""
MAX_ATTEMPTS = 10


@dataclass(frozen=True)
class ClipBatch:
    """A batch of training clips, or with B=1 one clip.

    clips: (B, T, S, S, 3) uint8 RGB. keys: the B clips' names, also where another video stood in.
    bad: (path, reason) of every file that failed on the way to these clips. A key for which no
    stand-in could be decoded either has no clip; ``require_complete`` says so.
    """

    clips: torch.Tensor
    keys: list[ClipKey]
    bad: list[BadFile]

    def require_complete(self) -> ClipBatch:
        """The batch itself; raises ``DecodeError`` where clips are missing.

        Asked in the training process: an exception of a worker arrives as a page of traceback.
        """
        if len(self.clips) == len(self.keys):
            return self
        path, reason = self.bad[-1]
        raise DecodeError(path, f"{reason} (after {MAX_ATTEMPTS} failures in a row, giving up)")

    def pin_memory(self) -> ClipBatch:
        """The batch in page-locked memory."""
        return replace(self, clips=self.clips.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipBatch:
        """The batch with its clips on ``device``."""
        return replace(self, clips=self.clips.to(device, non_blocking=non_blocking))


class ClipDataset(Dataset):
    """Random training clips, each a pure function of (seed, key) and of the files."""

    def __init__(
        self,
        videos: Sequence[Video],
        config: DataConfig,
        num_frames: int,
        image_size: int,
        seed: int,
    ) -> None:
        """Raises ``ValueError`` on an empty list."""
        if not videos:
            raise ValueError("expected at least 1 video, got 0")
        # Plain strings: every worker process copies the list it touches.
        self.paths = [video.path for video in videos]
        self.config = config
        self.num_frames = num_frames
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: ClipKey) -> ClipBatch:
        """The clip of ``key``; where its file fails, a clip of another listed video.

        The stand-in depends on (seed, key, attempt) only. After ``MAX_ATTEMPTS`` failures in a row
        there is no clip (``ClipBatch.require_complete``).
        """
        bad: list[BadFile] = []
        for attempt in range(MAX_ATTEMPTS):
            draw = ClipDraw.of(self.seed, key.epoch, key.index, attempt)
            index = key.index if attempt == 0 else int(draw.substitute * len(self.paths))
            try:
                frames = decode_window(
                    self.paths[index],
                    self.num_frames,
                    self.config.stride,
                    self.image_size,
                    draw.window,
                    partial(multi_scale_crop, scales=self.config.scales, draw=draw),
                )
                return ClipBatch(torch.from_numpy(frames)[None], [key], bad)
            except DecodeError as error:
                bad.append((error.path, error.reason))
        size = (0, self.num_frames, self.image_size, self.image_size, 3)
        return ClipBatch(torch.empty(size, dtype=torch.uint8), [key], bad)


def collate(items: Sequence[ClipBatch]) -> ClipBatch:
    """Join clips into one batch."""
    return ClipBatch(
        torch.cat([item.clips for item in items]),
        [key for item in items for key in item.keys],
        [bad for item in items for bad in item.bad],
    )


def make_loader(dataset: ClipDataset, batches: StreamBatches, workers: int) -> DataLoader:
    """DataLoader of ``ClipBatch`` in the order of ``batches``.

    The clips do not depend on ``workers``, nor does the loader touch torch's global random state.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        # DataLoader seeds its workers from here; without it, from the global generator.
        generator=torch.Generator().manual_seed(0),
    )


def _start_worker(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the trainer still wants its clips to finish a step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


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
