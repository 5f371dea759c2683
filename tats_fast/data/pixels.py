"""From a decoded frame to an upright RGB square: one pass of swscale, then a slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tats_fast.data.clip import Crop, placed
from tats_fast.data.pyav import scaling_options

if TYPE_CHECKING:
    import av

# Bilinear, with chroma at full resolution and exact rounding, as the bits of libswscale/swscale.h.
# swscale's quick path, which it takes for some sizes and not for others, is darker by 1.5 of 255.
_SCALING = 0x2 | 0x2000 | 0x4000 | 0x40000
# A thin crop of a long frame would scale the rest of that frame to gigabytes; beyond this side,
# in pixels, the crop is cut out before scaling.
_MAX_SCALED_SIDE = 8192


class FrameScaler:
    """Cuts, scales and converts frames of one clip to ``size`` x ``size`` RGB.

    Keeps the swscale context of the last frame size, so it serves one clip and one thread.
    """

    def __init__(self, size: int, crop: Crop) -> None:
        from av.video.reformatter import VideoReformatter

        self.size = size
        self.crop = crop
        self._reformatter = VideoReformatter()
        self._orientation = Orientations()

    def write(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Write ``frame`` into ``out``, (size, size, 3) uint8.

        The crop is chosen again for every frame size, as a stream may change it midway.
        """
        turn = self._orientation(frame)
        width, height = (frame.height, frame.width) if turn.swap else (frame.width, frame.height)
        box, size = self.crop(width, height), self.size
        scaled_width, scaled_height, left, top = placed(width, height, box, size)
        if max(scaled_width, scaled_height) > _MAX_SCALED_SIDE:
            self._write_cropped_first(frame, turn, box, out)
            return
        scaled = (scaled_height, scaled_width) if turn.swap else (scaled_width, scaled_height)
        image = self._rgb(frame, *scaled)
        out[...] = turn.apply(image)[top : top + size, left : left + size]

    def _write_cropped_first(
        self, frame: av.VideoFrame, turn: Orientation, box: tuple[int, ...], out: np.ndarray
    ) -> None:
        import av

        x, y, w, h = box
        upright = turn.apply(self._rgb(frame, frame.width, frame.height))
        part = np.ascontiguousarray(upright[y : y + h, x : x + w])
        out[...] = self._rgb(av.VideoFrame.from_ndarray(part), self.size, self.size)

    def _rgb(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8."""
        size = {"width": width, "height": height, "format": "rgb24"}
        return self._reformatter.reformat(
            frame, **size, interpolation=_SCALING, **scaling_options()
        ).to_ndarray()


@dataclass(frozen=True)
class Orientation:
    """The quarter turns and mirrors of a frame's display matrix."""

    swap: bool
    flip_rows: bool
    flip_columns: bool

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        try:
            data = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV 18 fails on side data newer than itself (multi-view HEVC)
            turns = round(frame.rotation / 90) % 4  # counter-clockwise
            return cls(turns % 2 == 1, flip_rows=turns in (1, 2), flip_columns=turns in (2, 3))
        if data is None:
            return cls(False, False, False)
        # Stored (x, y) is shown at (a x + c y, b x + d y), y downwards (libavutil/display.h).
        a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, flip_rows=d < 0, flip_columns=a < 0)
        return cls(True, flip_rows=b < 0, flip_columns=c < 0)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The upright view of a stored (H, W, 3) image."""
        if self.swap:
            image = image.transpose(1, 0, 2)
        if self.flip_rows:
            image = image[::-1]
        return image[:, ::-1] if self.flip_columns else image


class Orientations:
    """``Orientation.of`` of the frames of one file, looked up once for each rotation.

    PyAV's side data refers to its frame and the frame to it, so that a frame once asked stays until
    Python looks for cycles: a gigabyte per worker at 1080p when every frame was asked.
    """

    def __init__(self) -> None:
        self._known: dict[int, Orientation] = {}

    def __call__(self, frame: av.VideoFrame) -> Orientation:
        """The frame's orientation."""
        if frame.rotation not in self._known:
            self._known[frame.rotation] = Orientation.of(frame)
        return self._known[frame.rotation]
