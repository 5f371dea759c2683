"""Reading a video file for ``probe``: every frame, or its two ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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

    def see_packet(self, packet: av.Packet) -> bool:
        """Note how far the file reaches; True if the packet is of the video."""
        ours = packet.stream.index == self.stream.index
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None and (ours or self.any_stream) and not packet.is_corrupt:
            end = float((time + (packet.duration or 0)) * packet.time_base)
            self.end = end if self.end is None else max(self.end, end)
        return ours

    def see_frame(self, frame: av.VideoFrame) -> None:
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


def read_all(container: av.container.InputContainer, found: Findings) -> None:
    """Decode every frame, as strictly as training does within a window.

    Raises FFmpeg's errors of the middle of the file; the cut end of a file is no error.
    """
    import av

    for packet in container.demux():
        if not found.see_packet(packet):
            continue
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if packet.is_corrupt:  # cut short: the video ends here, as in a truncated file
                break
            raise
        for frame in frames:
            found.see_frame(frame)
    found.counted = found.frames


def read_ends(container: av.container.InputContainer, found: Findings, end: float) -> None:
    """Decode the first frame and the last keyframe, and note how far the file reaches.

    end: the time in s where the video ends if its header is right.
    """
    import av

    first = _next_frame(container, found, lenient=False)
    if first is None:
        return
    found.see_frame(first)
    try:
        for margin in _END_MARGINS:
            container.seek(round((end - margin) / found.stream.time_base), stream=found.stream)
            if _next_frame(container, found, lenient=True) is not None:
                break
        else:
            found.last_keyframe = False
        for packet in container.demux():
            found.see_packet(packet)
    except (av.error.FFmpegError, OverflowError):  # no way to seek in this file
        return


def skim(container: av.container.InputContainer, found: Findings) -> None:
    """Count the file's frames and note how far it reaches, without decoding."""
    found.counted = 0
    for packet in container.demux():
        found.counted += found.see_packet(packet) and packet.size > 0 and not packet.is_corrupt


def _next_frame(
    container: av.container.InputContainer, found: Findings, lenient: bool
) -> av.VideoFrame | None:
    """The next frame that decodes, or None. ``lenient`` passes over errors: behind a seek may be
    frames that cannot stand alone."""
    import av

    for packet in container.demux():
        if not found.see_packet(packet):
            continue
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if packet.is_corrupt:
                return None
            if not lenient:
                raise
            continue
        if frames:
            return frames[0]
    return None
