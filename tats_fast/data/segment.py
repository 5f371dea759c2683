"""The packets of one clip in a file of their own: all that another decoder gets to see.

A decoder that runs in the training process must not read foreign containers there: DALI's reader
crashes on damaged AVI files. So a worker process, which may die, reads the file, and hands out a
small Matroska file of our own making: from the keyframe before the clip to the clip's last picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from tats_fast.data.opening import Deadline, open_video
from tats_fast.data.picture_size import picture_sizes
from tats_fast.data.pyav import codec_name, packets_of
from tats_fast.data.video import stands_alone

if TYPE_CHECKING:
    import av

# Bytes of a segment at most; it waits in the trainer's memory until its batch is decoded.
_MOST_BYTES = 32 << 20


class Packet(NamedTuple):
    """What a packet of the video says of its picture."""

    pts: int
    """Time of presentation in ticks of the stream."""
    is_keyframe: bool


@dataclass(frozen=True)
class Segment:
    """data: a Matroska file. frames: where in it the clip's T frames are, in presentation order."""

    data: bytes
    frames: list[int]


def cut_segment(
    path: str,
    packets: Sequence[Packet],
    frames: Sequence[int],
    size: tuple[int, int],
    deadline: Deadline,
) -> Segment | None:
    """The segment with certain frames of a video, or None where its pictures may have another size,
    do not begin with a keyframe, or are too many bytes.

    Args:
        packets: all of the file, in its order, with distinct times.
        frames: numbers in order of presentation.
        size: width and height in pixels that all pictures must have.

    Raises:
        DecodeError: the file cannot be read, or it takes too long.
    """
    shown = sorted(range(len(packets)), key=lambda number: packets[number].pts)
    first, last = min(frames), max(frames)
    wanted = [shown[frame] for frame in frames]
    starts = (
        number
        for number in range(min(wanted), -1, -1)
        if packets[number].is_keyframe and packets[number].pts <= packets[shown[first]].pts
    )
    start = next(starts, None)
    if start is None:
        return None
    # Up to the last of those shown until the clip's end. What is shown before the keyframe but
    # comes after it refers to pictures before it.
    stop = max(shown[: last + 1]) + 1
    begin = packets[start].pts
    taken = frozenset(n for n in range(start, stop) if packets[n].pts >= begin)
    data = _remuxed(path, stop, taken, size, deadline)
    if data is None:
        return None
    place = {number: place for place, number in enumerate(n for n in shown if n in taken)}
    return Segment(data, [place[number] for number in wanted])


def _remuxed(
    path: str, stop: int, taken: frozenset[int], size: tuple[int, int], deadline: Deadline
) -> bytes | None:
    """The packets numbered ``taken``, all below ``stop``, as a Matroska file; None if too large, or
    not as ``_Pictures`` wants them."""
    import av

    file, left = io.BytesIO(), _MOST_BYTES
    with open_video(path) as (container, source), av.open(file, "w", "matroska") as out:
        stream, pictures = (
            out.add_stream_from_template(source, opaque=True),
            _Pictures(source, size),
        )
        packets = (packet for packet in packets_of(container, source) if packet.size)
        for number, packet in enumerate(islice(packets, stop)):
            deadline.check()
            if number not in taken:
                continue
            left -= packet.size
            if left < 0 or not pictures.accept(packet):
                return None
            packet.stream = stream
            out.mux(packet)
        if not pictures.end():
            return None
    return file.getvalue()


class _Pictures:
    """Whether packets begin with a keyframe, and all their pictures have the size given.

    DALI takes the size of the header for all, and leaves the rest of smaller pictures black.
    """

    def __init__(self, stream: av.VideoStream, size: tuple[int, int]) -> None:
        self._context = stream.codec_context
        self._declared = picture_sizes(codec_name(self._context))
        self._size, self._began = size, False

    def accept(self, packet: av.Packet) -> bool:
        """Take the next packet; False where it is not as it should be."""
        if self._declared is not None:
            sizes = self._declared(bytes(packet))
            good = sizes <= {self._size} and (self._began or bool(sizes))
            self._began = True
            return good
        # In the other codecs a size changes at a keyframe only.
        return not packet.is_keyframe or self._good(packet.decode())

    def end(self) -> bool:
        """False where the last pictures are not as they should be, or there were none."""
        return (
            self._declared is not None or self._good(self._context.decode(None))
        ) and self._began

    def _good(self, frames: list[av.VideoFrame]) -> bool:
        self._began |= bool(frames)
        return all(
            stands_alone(frame)
            and not frame.is_corrupt
            and (frame.width, frame.height) == self._size
            for frame in frames
        )
