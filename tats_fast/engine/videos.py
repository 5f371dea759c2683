"""The videos of a run, and the clips of them that it is to see next."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tats_fast.config import TrainingConfig
from tats_fast.config.training import VideosConfig
from tats_fast.data.bad_files import drop_quarantined
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.loader import ClipBatch, ClipLoader, make_loader
from tats_fast.data.order import Part, StreamBatches, parts_of
from tats_fast.engine.distributed import World

LOGGER = logging.getLogger("tats_fast")


class Loader(Protocol):
    """What a loop needs of whatever brings its micro-batches, endlessly and in order."""

    replaced_workers: int

    def __iter__(self) -> Iterator[ClipBatch]: ...

    def close(self) -> None: ...


def listed_videos(data: VideosConfig, split: str, says: bool) -> list[Video]:
    """The videos of ``data.train`` or ``data.eval`` without the quarantined ones.

    Args:
        split: ``train`` or ``eval``.
        says: whether this process tells how many are left out.
    """
    videos: list[Video] = []
    listed = 0
    specs = [entry.list for entry in data.train_lists] if split == "train" else [data.eval]
    for part, spec in enumerate(specs):
        found = read_videos(spec, data.root, key=f"data.{split}")
        listed += len(found)
        videos += [replace(video, part=part) for video in drop_quarantined(found, data.quarantine)]
    if len(videos) < listed and says:
        LOGGER.info(
            "data.quarantine leaves out %d of the %d videos of data.%s",
            listed - len(videos),
            listed,
            split,
        )
    if len(specs) > 1 and says:
        parts = zip(specs, video_parts(data, videos), strict=True)
        LOGGER.info(
            "data.train draws %s",
            "; ".join(f"{p.draws / len(videos):.1%} of {spec} ({p.videos})" for spec, p in parts),
        )
    return videos


def video_parts(data: VideosConfig, videos: Sequence[Video]) -> list[Part]:
    """Of ``data.train``'s lists, how many videos each has and how many draws of a pass are its."""
    counts = Counter(video.part for video in videos)
    sizes = [counts[part] for part in range(len(data.train_lists))]
    return parts_of(sizes, [entry.weight for entry in data.train_lists])


def listing(videos: Sequence[Video]) -> dict[str, Any]:
    """What a checkpoint remembers of a list: how many videos, and digests of their names, in which
    folder soever, and of their labels."""
    names = _digest(os.path.basename(video.path) for video in videos)
    return {"videos": len(videos), "names": names, "labels": _digest(v.label for v in videos)}


def _digest(values: Iterable[object]) -> str:
    text = "\n".join(map(str, values))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def total_steps(config: TrainingConfig, num_videos: int) -> int:
    """Optimizer steps of the run: ``train.steps``, or ``train.epochs`` passes over the list."""
    if config.train.steps is not None:
        return config.train.steps
    return math.ceil(config.train.epochs * num_videos / config.listed_per_step)


def make_run_loader(
    config: TrainingConfig,
    world: World,
    videos: list[Video],
    clip_shape: tuple[int, int],
    taken: int,
) -> ClipLoader:
    """This process's micro-batches of a run.

    Args:
        clip_shape: frames and side in pixels of a clip.
        taken: windows that the run has taken from the list so far.
    """
    windows = config.windows_per_step
    batches = StreamBatches(
        len(videos),
        config.seed,
        windows,
        world.rank,
        world.size,
        windows // (world.size * config.train.accumulation),
        start_sample=taken,
        parts=video_parts(config.data, videos),
    )
    return make_loader(videos, config.data, *clip_shape, config.seed, batches, world.device)
