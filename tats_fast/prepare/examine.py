"""What one video file claims to hold, what of it is there, and whether that is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from tats_fast.data.video import MAX_RATE, DecodeError, open_video
from tats_fast.prepare.examine_read import Findings, read_all, read_ends, skim

if TYPE_CHECKING:
    import av

MODES = ("quick", "full")

# A file that holds less than this share of what it claims gets a warning.
_COMPLETE = 0.9
# Damage to the last frames is what cutting off a file leaves; their order is not that of the file.
_CUT_FRAMES = 3
# Gaps between frames that differ from the median by more than this share of it are no rounding.
_STEADY = 0.5


def probe(path: str, mode: str, min_share: float, window: int) -> dict[str, Any]:
    """Look into a video: facts that JSON can hold, with ``error`` (one short reason) if it is bad.

    mode: "quick" decodes the first frame and the last keyframe, "full" every frame.
    min_share: share of its claimed length below which a file is bad.
    window: frames that a training clip spans.

    Keys, as far as the file can be read: ``codec``, ``pix_fmt``, ``bits`` (per component),
    ``width`` and ``height`` (px, as stored), ``rotation`` (degrees), ``fps``, ``duration`` (s) and
    ``frames_claimed`` as the header says, ``frames`` (decoded; null in quick mode), ``warnings``.
    """
    facts: dict[str, Any] = {"warnings": []}
    found = None
    try:
        with open_video(path) as (container, stream):
            claims = Claims.of(container, stream)
            facts |= claims.facts()
            found = Findings(stream, any_stream=not claims.of_stream)
            if mode == "full":
                read_all(container, found)
            else:
                read_ends(container, found, claims.origin + (claims.duration or 0.0))
        if mode == "quick" and found.frames and claims.share(found) < _COMPLETE:
            # Seeking may have missed the end: some formats look it up in a table.
            with open_video(path) as (container, stream):
                found.stream = stream
                skim(container, found)
    except DecodeError as error:
        if found is None:
            return facts | {"error": error.reason}
        after = f" after {found.frames} frames" if found.frames else ""
        return facts | _decoded(found, mode) | {"error": error.reason + after}
    facts |= _decoded(found, mode)
    error = _error(claims, found, min_share)
    if error is not None:
        return facts | {"error": error}
    return facts | {"warnings": _warnings(claims, found, window)}


@dataclass(frozen=True)
class Claims:
    """What a header says. Seconds of a container, other than those of its video stream, are those
    of its longest stream, sound included."""

    codec: str
    fps: float | None
    frames: int | None
    duration: float | None
    origin: float
    of_stream: bool
    """Whether ``duration`` and ``origin`` are the video stream's own."""

    @classmethod
    def of(cls, container: av.container.InputContainer, stream: av.VideoStream) -> Claims:
        """Read them off an open file."""
        of_stream = bool(stream.duration)
        source, unit = (stream, stream.time_base) if of_stream else (container, 1e-6)
        duration = float(source.duration * unit) if (source.duration or 0) > 0 else None
        if container.format.name == "avi" and stream.frames > 0 and stream.average_rate:
            # FFmpeg guesses an AVI's duration from what is left of it.
            duration = float(stream.frames / stream.average_rate)
        return cls(
            codec=stream.codec_context.name,
            fps=float(stream.average_rate) if stream.average_rate else None,
            frames=stream.frames if stream.frames > 0 else None,
            duration=duration,
            origin=float((source.start_time or 0) * unit),
            of_stream=of_stream,
        )

    def facts(self) -> dict[str, Any]:
        """As they go into the record."""
        return {
            "codec": self.codec,
            "fps": self.fps and round(self.fps, 3),
            "frames_claimed": self.frames,
            "duration": self.duration and round(self.duration, 3),
        }

    def length(self) -> int | None:
        """Frames, if the header says or lets guess."""
        if self.frames is None and self.duration and self.fps and self.fps <= MAX_RATE:
            return round(self.duration * self.fps)
        return self.frames

    def share(self, found: Findings) -> float:
        """Share of the claimed length that is there: the larger of the shares of frames and of
        seconds, since either claim may be wrong where the file is whole."""
        shares = []
        if self.frames and found.counted is not None:
            shares.append(found.counted / self.frames)
        if self.duration and found.end is not None:
            shares.append((found.end - self.origin) / self.duration)
        return max(shares, default=1.0)


def _decoded(found: Findings, mode: str) -> dict[str, Any]:
    """What decoding told, as it goes into the record."""
    return {"frames": found.frames if mode == "full" else None, **found.first}


def _error(claims: Claims, found: Findings, min_share: float) -> str | None:
    """Why a file that was read without an error is bad, or None."""
    share = claims.share(found)
    if not found.frames:
        return "no frame could be decoded"
    if share < min_share:
        if claims.frames and found.counted is not None:
            return f"truncated: {found.counted} of {claims.frames} frames"
        return f"truncated: {share * claims.duration:.1f} of {claims.duration:.1f} s"
    damaged = sum(number < found.frames - _CUT_FRAMES for number in found.damaged)
    if damaged:
        return f"damaged pictures: {damaged} of {found.frames} frames"
    if not found.last_keyframe and share >= _COMPLETE:
        return "the last keyframe does not decode"
    return None


def _warnings(claims: Claims, found: Findings, window: int) -> list[str]:
    """Kinds of oddity of a file that can be used all the same."""
    claimed, counted = claims.frames, found.counted
    length = counted if counted is not None else claims.length()
    kinds = {
        "no frame count in the header": claimed is None,
        "header frame count wrong": None not in (claimed, counted) and claimed != counted,
        "ends early": claims.share(found) < _COMPLETE,
        "shorter than the training window": length is not None and length < window,
        "variable frame rate": _is_variable(found.times),
        "timestamps going backwards": any(b < a for a, b in pairwise(found.times)),
        "picture size changes": len(found.sizes) > 1,
        "rotated": found.first["rotation"] != 0,
        "more than 8 bits": found.first["bits"] > 8,
    }
    return [kind for kind, is_so in kinds.items() if is_so]


def _is_variable(times: list[float]) -> bool:
    """Whether frames follow each other at uneven gaps, whatever their order."""
    ordered = sorted(times)
    gaps = [later - earlier for earlier, later in pairwise(ordered) if later > earlier]
    if not gaps:
        return False
    usual = median(gaps)
    return any(abs(gap - usual) > _STEADY * usual for gap in gaps)
