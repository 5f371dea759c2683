"""What comes out of a video file that is read whole, or at its two ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tats_fast.data.pyav import packets_of
from tats_fast.data.video import decoded_frames

if TYPE_CHECKING:
    import av

# Seconds before the end at which to look for the last keyframe that decodes.
_END_MARGINS = (0.0, 1.0, 10.0)


@dataclass
class Findings:
    """What came out of a file; filled while it is read, so it is there after an error, too."""

    stream: av.VideoStream
    any_stream: bool
    """Whether packets of other streams, sound for instance, count for ``end``."""
    frames: int = 0
    """Decoded frames."""
    counted: int | None = None
    """Frames in the file, where all were decoded or counted without."""
    damaged: list[int] = field(default_factory=list)
    """Numbers of the frames that the decoder had to patch up."""
    first: dict[str, Any] = field(default_factory=dict)
    """Format of the first frame."""
    sizes: set[tuple[int, int]] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    """Presentation times in s, in decoder order."""
    end: float | None = None
    """The latest time in s that any packet reaches; None without timestamps."""
    last_keyframe: bool = True
    """Whether something decodes at the end."""

    def read_all(self) -> None:
        """Decode every frame, as strictly as training does within a window.

        Raises FFmpeg's errors of the middle of the file; the cut end of a file is no error.
        """
        for frame in decoded_frames(self._packets()):
            self._see_frame(frame)
        self.counted = self.frames

    def read_ends(self, end: float) -> None:
        """Decode the first frame and the last keyframe, and note how far the file reaches.

        end: the time in s where the video ends if its header is right.
        """
        import av

        first = next(decoded_frames(self._packets()), None)
        if first is None:
            return
        self._see_frame(first)
        stream = self.stream
        try:
            for margin in _END_MARGINS:
                stream.container.seek(round((end - margin) / stream.time_base), stream=stream)
                # Behind a seek may be frames that cannot stand alone.
                if next(decoded_frames(self._packets(), lenient=True), None) is not None:
                    break
            else:
                self.last_keyframe = False
            for _ in self._packets():
                pass
        except (av.error.FFmpegError, OverflowError):  # no way to seek in this file
            return

    def skim(self) -> None:
        """Count the file's frames and note how far it reaches, without decoding."""
        packets = self._packets()
        self.counted = sum(packet.size > 0 and not packet.is_corrupt for packet in packets)

    def _packets(self) -> Iterator[av.Packet]:
        """The packets of the video, noting how far the file reaches."""
        for packet in packets_of(self.stream.container):
            ours = packet.stream.index == self.stream.index
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None and (ours or self.any_stream) and not packet.is_corrupt:
                end = float((time + (packet.duration or 0)) * packet.time_base)
                self.end = end if self.end is None else max(self.end, end)
            if ours:
                yield packet

    def _see_frame(self, frame: av.VideoFrame) -> None:
        """Note a decoded frame."""
        if not self.frames:
            self.first = {
                "pix_fmt": frame.format.name,
                "bits": max(component.bits for component in frame.format.components),
                "width": frame.width,
                "height": frame.height,
                "rotation": frame.rotation,
            }
        if frame.is_corrupt:
            self.damaged.append(self.frames)
        self.frames += 1
        self.sizes.add((frame.width, frame.height))
        if frame.time is not None:
            self.times.append(frame.time)
