"""Copies of videos that are quick to cut clips from: small, upright, with a keyframe every few
frames.

A clip is cut by decoding from the keyframe before it. In a file with one keyframe per 250 frames
that costs more than the clip itself, and most pixels of a large frame are scaled away again.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from tats_fast.config import ConfigError
from tats_fast.data.pixels import Orientation
from tats_fast.data.video import DecodeError, Timing, decode_window, open_video
from tats_fast.prepare.manifest import describe

if TYPE_CHECKING:
    import av
    from av.video.reformatter import VideoReformatter

SUFFIX = ".mp4"
"""Ending of every copy, whatever its codec."""

# Bicubic, with exact rounding and chroma interpolated, as the bits of libswscale/swscale.h.
_SCALING = 0x4 | 0x2000 | 0x4000 | 0x40000
# Finer clocks than this overflow the 32-bit frame durations of MP4.
_FINEST_CLOCK = 1_000_000
_MPEG_RANGE, _JPEG_RANGE = 1, 2


@dataclass(frozen=True)
class _Codec:
    encoder: str
    quality: int
    """Default quality: the smaller, the better and larger."""
    best: int
    worst: int
    pix_fmt: str = "yuv420p"
    color_range: int = _MPEG_RANGE


# Without B-frames decoding order is showing order, and every frame behind a keyframe is needed
# anyway. JPEG defines only full-range samples.
CODECS = {
    "h264": _Codec("libx264", quality=20, best=0, worst=51),
    "vp9": _Codec("libvpx-vp9", quality=28, best=0, worst=63),
    "mjpeg": _Codec("mjpeg", 3, best=1, worst=31, pix_fmt="yuvj420p", color_range=_JPEG_RANGE),
}


@dataclass(frozen=True)
class Recipe:
    """How copies are made. Raises ``ConfigError`` for values out of range."""

    codec: str = "h264"
    """``h264`` (GPU decoders read it), ``vp9`` (smaller, slow to make) or ``mjpeg`` (every frame a
    keyframe, several times larger)."""
    short_side: int = 256
    """Pixels of the shorter side; smaller videos keep their size."""
    gop: int = 16
    """Frames from keyframe to keyframe. On average gop/2 frames are decoded in vain before a clip;
    a clip of 16 frames at stride 4 spans 61."""
    quality: int | None = None
    """CRF of h264 (0 to 51) and vp9 (0 to 63), quantiser of mjpeg (1 to 31); none = a good one."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ConfigError(f"--transcode={self.codec}: expected one of {', '.join(CODECS)}")
        if self.short_side < 16 or self.short_side % 2:
            raise ConfigError(f"--short-side={self.short_side}: expected an even number from 16 on")
        if self.gop < 1:
            raise ConfigError(f"--gop={self.gop}: expected at least 1 frame")
        codec = CODECS[self.codec]
        if self.quality is not None and not codec.best <= self.quality <= codec.worst:
            raise ConfigError(
                f"--quality={self.quality}: {self.codec} takes {codec.best} to {codec.worst}"
            )

    def options(self) -> dict[str, str]:
        """Options of the FFmpeg encoder."""
        quality = str(CODECS[self.codec].quality if self.quality is None else self.quality)
        gop = {"g": str(self.gop), "keyint_min": str(self.gop)}
        if self.codec == "h264":
            # Tuned for decoding: 1.7 times as quick to decode, a tenth larger.
            speed = {"preset": "fast", "tune": "fastdecode", "bf": "0"}
            return {**gop, **speed, "crf": quality, "sc_threshold": "0"}
        if self.codec == "vp9":
            # No hidden reference frames: one packet is one frame.
            hidden = {"lag-in-frames": "0", "auto-alt-ref": "0"}
            return {**gop, **hidden, "deadline": "good", "cpu-used": "5", "crf": quality, "b": "0"}
        return {"qmin": quality, "qmax": quality}


@dataclass(frozen=True)
class Task:
    """One copy to make: absolute paths of the video and of its copy."""

    source: str
    target: str


def transcode_job(task: Task, recipe: Recipe, with_hash: bool) -> dict[str, Any]:
    """Make a copy and describe it; a broken source is the outcome ``{"error": reason}``."""
    try:
        transcode(task.source, task.target, recipe)
        return describe(task.target, with_hash)
    except DecodeError as error:
        return {"error": error.reason}


def transcode(source: str, target: str, recipe: Recipe) -> int:
    """Write the copy ``target`` of the video ``source``, whole or not at all; returns its frames.

    Upright (rotation and mirroring applied), square pixels, even sides, 8 bits, 4:2:0, no sound.
    Every decoded frame is kept, at its own time. Raises ``DecodeError`` if the source does not
    decode from end to end (nothing is left at ``target``), ``OSError`` if writing fails.
    """
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.tmp")
    try:
        frames = _encode(source, temporary, recipe)
        kept = _packets(temporary)
        if kept != frames:
            raise DecodeError(source, f"{kept} of {frames} frames arrived in the copy")
        os.replace(temporary, target)
    except DecodeError:
        _remove(target)  # a copy of an earlier state of the source
        raise
    finally:
        _remove(temporary)
    return frames


@dataclass(frozen=True)
class Access:
    """Clips per second of one process that cuts random windows, from sources and from copies."""

    sources: float
    copies: float

    def __str__(self) -> str:
        gain = self.copies / self.sources
        return (
            f"{self.sources:.1f} clips/s from the sources, "
            f"{self.copies:.1f} clips/s from the copies ({gain:.1f}x)"
        )


def measure_access(
    tasks: Sequence[Task], *, num_frames: int = 16, stride: int = 4, size: int = 224, clips: int = 5
) -> Access:
    """Time random clips of (num_frames, size, size, 3) from finished copies and their sources.

    Each file's windows are drawn alike for both and taken in turns; a file counts with its median.
    All is read once before the clock starts, so this is decoding without the disk.
    """
    windows = np.random.default_rng(0).random(clips)
    total = {"source": 0.0, "target": 0.0}
    for task in tasks:
        seconds: dict[str, list[float]] = {"source": [], "target": []}
        for window in (windows[0], *windows):
            for side, taken in seconds.items():
                begin = time.perf_counter()
                decode_window(getattr(task, side), num_frames, stride, size, float(window))
                taken.append(time.perf_counter() - begin)
        for side, taken in seconds.items():
            total[side] += statistics.median(taken[1:])
    return Access(len(tasks) / total["source"], len(tasks) / total["target"])


def target_size(width: int, height: int, aspect: Fraction, short_side: int) -> tuple[int, int]:
    """Stored (width, height) of the copy: square pixels, short side at most ``short_side``, even.

    aspect: width of a stored pixel over its height. Nothing grows, except to the least size, 2.
    1920x1080 -> 456x256; 720x576 with pixels of 64/45 (shown as 1024x576) -> 456x256.
    """
    w, h = Fraction(width), Fraction(height)
    if aspect > 1:
        h /= aspect
    else:
        w *= aspect
    scale = min(Fraction(1), short_side / min(w, h))
    even = (max(2, 2 * round(side * scale / 2)) for side in (w, h))
    most = (max(2, side - side % 2) for side in (width, height))
    across, down = (min(side, limit) for side, limit in zip(even, most, strict=True))
    return across, down


def _encode(source: str, target: str, recipe: Recipe) -> int:
    """Write a file at ``target``; returns the number of frames."""
    import av
    from av.video.reformatter import VideoReformatter

    codec, scaler = CODECS[recipe.codec], VideoReformatter()
    count, size = 0, (0, 0)
    with open(target, "wb") as file:
        with av.open(file, "w", "mp4", options={"movflags": "+faststart"}) as out:
            stream: Any = None
            for frame, facts in _decoded(source):
                turn = Orientation.of(frame)
                if stream is None:
                    size = target_size(frame.width, frame.height, facts.aspect, recipe.short_side)
                    shown = size[::-1] if turn.swap else size
                    stream = _add_stream(out, codec, recipe.options(), facts, frame, shown)
                    clock = _Clock(facts)
                # Later frames of another shape are stretched to the first one's.
                width, height = shown[::-1] if turn.swap else shown
                image = _converted(scaler, frame, width, height, codec)
                image = _upright(image, turn)
                image.pts, image.time_base = clock.ticks(frame), facts.clock
                image.duration = clock.step
                out.mux(stream.encode(image))
                count += 1
            if stream is None:
                raise DecodeError(source, "no frame could be decoded")
            out.mux(stream.encode())
        file.flush()
        os.fsync(file.fileno())
    return count


@dataclass(frozen=True)
class _Facts:
    """Of the source: width over height of a pixel, frames per second, unit of time in s."""

    aspect: Fraction
    rate: Fraction
    clock: Fraction


def _decoded(path: str) -> Iterator[tuple[av.VideoFrame, _Facts]]:
    """All frames in the decoder's order, as loading sees them. Raises ``DecodeError``."""
    import av

    with open_video(path) as (container, stream):
        rate = Fraction(Timing.of(path, container, stream).rate).limit_denominator(100_000)
        clock = Fraction(stream.time_base)
        if clock.denominator > _FINEST_CLOCK:
            clock = Fraction(1, 90_000)
        facts = _Facts(Fraction(stream.sample_aspect_ratio or 1), rate, clock)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                if packet.is_corrupt:  # cut short: the video ends here, as it does for the loader
                    return
                raise
            for frame in frames:
                yield frame, facts


class _Clock:
    """Timestamps that begin at 0 and rise: the frames' own, as far as they can be used.

    Files with packed B-frames give some frames none, or one of the past: such a frame comes one
    frame duration after the one before.
    """

    def __init__(self, facts: _Facts) -> None:
        self._clock = facts.clock
        self.step = max(1, round(1 / (facts.rate * facts.clock)))
        """Ticks of a frame."""
        self._origin: Fraction | None = None
        self._last = -self.step

    def ticks(self, frame: av.VideoFrame) -> int:
        """Time of the next frame, in units of the clock."""
        now = self._last + self.step
        if frame.pts is not None and frame.time_base:
            time = frame.pts * Fraction(frame.time_base)
            if self._origin is None:
                self._origin = time - now * self._clock
            own = round((time - self._origin) / self._clock)
            if own > self._last:
                now = own
        self._last = now
        return now


def _add_stream(
    out: av.container.OutputContainer,
    codec: _Codec,
    options: dict[str, str],
    facts: _Facts,
    frame: av.VideoFrame,
    size: tuple[int, int],
) -> av.VideoStream:
    stream = out.add_stream(codec.encoder, rate=facts.rate)
    stream.width, stream.height = size
    stream.pix_fmt = codec.pix_fmt
    stream.options = options
    context = stream.codec_context
    stream.time_base = context.time_base = facts.clock
    context.thread_count = 1  # files are worked on side by side
    context.color_range = codec.color_range
    if "yuv" in frame.format.name:  # RGB is converted without saying how; readers assume the same
        context.colorspace = frame.colorspace
        context.color_primaries = frame.color_primaries
        context.color_trc = frame.color_trc
    return stream


def _converted(
    scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int, codec: _Codec
) -> av.VideoFrame:
    return scaler.reformat(
        frame,
        width=width,
        height=height,
        format=codec.pix_fmt,
        interpolation=_SCALING,
        src_color_range=frame.color_range or None,
        dst_color_range=codec.color_range,
        threads=1,
    )


def _upright(image: av.VideoFrame, turn: Orientation) -> av.VideoFrame:
    """Turn and mirror the three planes of a 4:2:0 frame with even sides."""
    import av

    if not (turn.swap or turn.flip_rows or turn.flip_columns):
        return image
    stored, (w, h) = image.to_ndarray(), (image.width, image.height)
    flat = stored.reshape(-1)
    luma, quarter = flat[: w * h].reshape(h, w), w * h // 4
    chroma = [flat[w * h + part * quarter :][:quarter].reshape(h // 2, w // 2) for part in range(2)]
    planes = [turn.apply(plane[..., None])[..., 0] for plane in (luma, *chroma)]
    joined = np.concatenate([plane.reshape(-1) for plane in planes])
    turned = av.VideoFrame.from_ndarray(
        joined.reshape(-1, planes[0].shape[1]), format=image.format.name
    )
    turned.color_range, turned.colorspace = image.color_range, image.colorspace
    return turned


def _packets(path: str) -> int:
    """Frames in a finished copy."""
    with open_video(path) as (container, stream):
        return sum(packet.size > 0 for packet in container.demux(stream))


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
