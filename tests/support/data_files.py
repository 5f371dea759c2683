"""Videos whose every frame shows its own number, for the tests of decoding and loading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CAN_TURN = int(av.__version__.partition(".")[0]) >= 17
"""Whether this PyAV writes rotations; all of them read them."""


def numbered_frame(number: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: the 8 bits of ``number`` as 2 x 4 black or white blocks that fill
    the centre square; the asymmetric grid also gives turns and mirrors away."""
    side = min(width, height)
    bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4)
    rows, columns = np.arange(side) * 2 // side, np.arange(side) * 4 // side
    square = np.where(bits[rows][:, columns] > 0, 235, 16).astype(np.uint8)
    frame = np.full((height, width, 3), 128, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    frame[top : top + side, left : left + side] = square[..., None]
    return frame


def numbers(clip: np.ndarray) -> list[int]:
    """The numbers shown by the frames of a (T, S, S, 3) clip with centre crop."""
    size = clip.shape[1]
    rows = (np.array([0.5, 1.5]) * size / 2).astype(int)
    columns = ((np.arange(4) + 0.5) * size / 4).astype(int)
    bits = clip[:, rows][:, :, columns].mean(-1) > 127
    return (bits.reshape(len(clip), 8) * (1 << np.arange(8))).sum(1).tolist()


def noise(image: np.ndarray) -> np.ndarray:
    """In place of ``image`` one that does not compress, so that every part of a file holds frames:
    a ``turn`` of ``write_video``."""
    return np.random.default_rng(image.sum()).integers(0, 255, image.shape, np.uint8)


def write_video(
    path: Path,
    count: int,
    codec: str = "libx264",
    *,
    width: int = 64,
    height: int = 64,
    rate: int = 25,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    title: str | None = None,
    turn: Callable[[np.ndarray], np.ndarray] = lambda frame: frame,
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
) -> Path:
    """Encode frames 0..count-1; ``pts`` in milliseconds, ``turn`` changes the stored image."""
    with av.open(str(path), "w", options=container_options or {}) as out:
        if title is not None:
            out.metadata["title"] = title
        stream = out.add_stream(codec, rate=rate)
        image = turn(numbered_frame(0, width, height))
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        stream.options = options or {}
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        for number in range(count):
            image = np.ascontiguousarray(turn(numbered_frame(number, width, height)))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pts is None:
                frame.pts, frame.time_base = number, Fraction(1, rate)
            else:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A second of silence, no video."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        for _ in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path
