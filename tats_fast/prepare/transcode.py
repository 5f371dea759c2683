"""Copies of videos that are quick to cut clips from: small, upright, with a keyframe every few
frames.

A clip is cut by decoding from the keyframe before it. In a file with one keyframe per 250 frames
that costs more than the clip itself, and most pixels of a large frame are scaled away again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tats_fast.data.opening import DecodeError, open_video
from tats_fast.data.pixels import Orientation, Orientations
from tats_fast.data.pyav import packets_of, scaling_options
from tats_fast.data.video import Timing, count_frames, decoded_frames
from tats_fast.prepare.options import Recipe

if TYPE_CHECKING:
    import av

SUFFIX = ".mp4"
"""Ending of every copy."""

_PIX_FMT = "yuv420p"
_MPEG_RANGE = 1
_CRF = 20
# Bicubic, with exact rounding and chroma interpolated, as the bits of libswscale/swscale.h.
_SCALING = 0x4 | 0x2000 | 0x4000 | 0x40000
# Finer clocks than this overflow the 32-bit frame durations of MP4.
_FINEST_CLOCK = 1_000_000


def transcode(source: str, target: str, recipe: Recipe) -> int:
    """Write the copy ``target`` of the video ``source``, whole or not at all; returns its frames.

    Upright (rotation and mirroring applied), square pixels, even sides, 8 bits, 4:2:0, no sound.
    Every decoded frame is there, at its own time.

    Raises:
        DecodeError: the source does not decode from end to end; nothing is left at ``target``.
        OSError: writing fails.
    """
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.tmp")
    try:
        frames = _encode(source, temporary, recipe)
        arrived = count_frames(temporary)
        if arrived != frames:
            raise DecodeError(source, f"{arrived} of {frames} frames arrived in the copy")
        os.replace(temporary, target)
    except DecodeError:
        Path(target).unlink(missing_ok=True)  # a copy of an earlier state of the source
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)
    return frames


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

    scaler, orientation = VideoReformatter(), Orientations()
    count = 0
    with open(target, "wb") as file:
        with av.open(file, "w", "mp4", options={"movflags": "+faststart"}) as out:
            for count, (frame, original) in enumerate(_decoded(source), start=1):
                turn = orientation(frame)
                if count == 1:
                    size = target_size(
                        frame.width, frame.height, original.aspect, recipe.short_side
                    )
                    upright = size[::-1] if turn.swap else size
                    stream = _add_stream(out, recipe, original, frame, upright)
                # Later frames of another shape are stretched to the first one's.
                width, height = upright[::-1] if turn.swap else upright
                image = scaler.reformat(
                    frame,
                    width=width,
                    height=height,
                    format=_PIX_FMT,
                    interpolation=_SCALING,
                    src_color_range=frame.color_range or None,
                    dst_color_range=_MPEG_RANGE,
                    **scaling_options(),
                )
                image = _upright(image, turn)
                image.pts, image.time_base = original.ticks(frame), original.clock
                image.duration = original.step
                out.mux(stream.encode(image))
            if not count:
                raise DecodeError(source, "no frame could be decoded")
            out.mux(stream.encode())
        file.flush()
        os.fsync(file.fileno())
    return count


def _decoded(path: str) -> Iterator[tuple[av.VideoFrame, _Original]]:
    """All frames in the decoder's order, as loading sees them. Raises ``DecodeError``."""
    with open_video(path) as (container, stream):
        original = _Original(path, stream)
        for frame in decoded_frames(packets_of(container, stream)):
            yield frame, original


class _Original:
    """What a copy takes from its source, and timestamps that begin at 0 and rise.

    They are the frames' own, as far as they can be used. Files with packed B-frames give some
    frames none, or one of the past: such a frame comes one frame duration after the one before.
    """

    def __init__(self, path: str, stream: av.VideoStream) -> None:
        self.aspect = Fraction(stream.sample_aspect_ratio or 1)
        """Width over height of a pixel."""
        self.rate = Fraction(Timing.of(path, stream).rate).limit_denominator(100_000)
        """Frames per second."""
        self.clock = Fraction(stream.time_base)
        """Seconds of a tick."""
        if self.clock.denominator > _FINEST_CLOCK:
            self.clock = Fraction(1, 90_000)
        self.step = max(1, round(1 / (self.rate * self.clock)))
        """Ticks of a frame."""
        self._origin: Fraction | None = None
        self._last = -self.step

    def ticks(self, frame: av.VideoFrame) -> int:
        """Time of the next frame, in units of the clock."""
        now = self._last + self.step
        if frame.pts is not None and frame.time_base:
            time = frame.pts * Fraction(frame.time_base)
            if self._origin is None:
                self._origin = time - now * self.clock
            own = round((time - self._origin) / self.clock)
            if own > self._last:
                now = own
        self._last = now
        return now


def _add_stream(
    out: av.container.OutputContainer,
    recipe: Recipe,
    original: _Original,
    frame: av.VideoFrame,
    size: tuple[int, int],
) -> av.VideoStream:
    stream = out.add_stream("libx264", rate=original.rate)
    stream.width, stream.height = size
    stream.pix_fmt = _PIX_FMT
    # Tuned for decoding: 1.7 times as quick to decode, a tenth larger. Without B-frames decoding
    # order is showing order, and every frame behind a keyframe is needed anyway.
    stream.options = {
        **{"g": str(recipe.gop), "keyint_min": str(recipe.gop), "sc_threshold": "0", "bf": "0"},
        **{"preset": "fast", "tune": "fastdecode"},
        "crf": str(_CRF if recipe.quality is None else recipe.quality),
    }
    context = stream.codec_context
    stream.time_base = context.time_base = original.clock
    context.thread_count = 1  # files are worked on side by side
    context.color_range = _MPEG_RANGE
    if "yuv" in frame.format.name:  # RGB is converted without saying how; readers assume the same
        for name in ("colorspace", "color_primaries", "color_trc"):
            if hasattr(frame, name):  # PyAV before 17 knows the first one only
                setattr(context, name, getattr(frame, name))
    return stream


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
