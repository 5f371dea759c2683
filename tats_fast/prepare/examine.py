"""What one video file claims to hold, what of it is there, and whether that is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from tats_fast.data.opening import DecodeError, open_video
from tats_fast.data.video import MAX_RATE
from tats_fast.prepare.findings import Findings

if TYPE_CHECKING:
    import av

# A file that holds less than this share of what it claims gets a warning.
_COMPLETE = 0.9
# A file that was cut off has damaged frames at its end, in another order than in the file.
_CUT_FRAMES = 3
# Gaps between frames that differ from the median by more than this share of it are no rounding.
_STEADY = 0.5


def examine(path: str, mode: str, min_share: float, window: int) -> dict[str, Any]:
    """Look into a video file.

    Args:
        mode: "quick" decodes the first frame and the last keyframe, "full" every frame.
        min_share: share of its claimed length below which a file is bad.
        window: frames that a training clip spans.

    Returns:
        Facts that JSON can hold, as far as the file can be read: ``codec``, ``pix_fmt``, ``bits``
        (per component), ``width`` and ``height`` (px, as stored), ``rotation`` (degrees); ``fps``,
        ``duration`` (s) and ``frames_claimed`` as in the header; ``frames`` (decoded; null in quick
        mode), ``warnings``, and ``error`` (one short reason) if the file is bad.
    """
    facts: dict[str, Any] = {"warnings": []}
    findings = None
    try:
        with open_video(path) as (_, stream):
            claims = Claims.of(stream)
            facts |= claims.facts()
            findings = Findings(stream, any_stream=not claims.of_stream)
            if mode == "full":
                findings.read_all()
            else:
                findings.read_ends(claims.origin + (claims.duration or 0.0))
        if mode == "quick" and findings.frames and claims.share(findings) < _COMPLETE:
            # Seeking may have missed the end: some formats look it up in a table.
            with open_video(path) as (_, findings.stream):
                findings.skim()
        error = _error(claims, findings, min_share)
    except DecodeError as failure:
        if findings is None:
            return facts | {"error": failure.reason}
        error = failure.reason + (f" after {findings.frames} frames" if findings.frames else "")
    facts |= {"frames": findings.frames if mode == "full" else None, **findings.first}
    if error is not None:
        return facts | {"error": error}
    return facts | {"warnings": _warnings(claims, findings, window)}


@dataclass(frozen=True)
class Claims:
    """Length and times in a file's header. Where the video stream has none, the container's stand
    in, which are of its longest stream, sound included."""

    codec: str
    fps: float | None
    frames: int | None
    duration: float | None
    origin: float
    of_stream: bool
    """Whether ``duration`` and ``origin`` are the video stream's own."""
    from_zero: bool = False
    """Whether ``duration`` may have been counted from zero and not from ``origin``."""

    @classmethod
    def of(cls, stream: av.VideoStream) -> Claims:
        """The claims of an open file."""
        container, of_stream = stream.container, bool(stream.duration)
        source, tick = (stream, stream.time_base) if of_stream else (container, 1e-6)
        duration = float(source.duration * tick) if (source.duration or 0) > 0 else None
        origin = float((source.start_time or 0) * tick)
        if duration is not None and "mp4" in container.format.name and stream.frames == 0:
            # FFmpeg counts the duration of a fragmented file from zero.
            duration = duration - origin if duration > origin else None
        if container.format.name == "avi" and stream.frames > 0 and stream.average_rate:
            # FFmpeg guesses an AVI's duration from what is left of it.
            duration = float(stream.frames / stream.average_rate)
        return cls(
            codec=stream.codec_context.name,
            fps=float(stream.average_rate) if stream.average_rate else None,
            frames=stream.frames if stream.frames > 0 else None,
            duration=duration,
            origin=origin,
            of_stream=of_stream,
            from_zero="matroska" in container.format.name and (duration or 0) > origin,
        )

    def facts(self) -> dict[str, Any]:
        """The part that goes on record."""
        return {
            "codec": self.codec,
            "fps": self.fps and round(self.fps, 3),
            "frames_claimed": self.frames,
            "duration": self.duration and round(self.duration, 3),
        }

    def length(self) -> int | None:
        """Frames, as claimed or guessed from duration and rate."""
        if self.frames is None and self.duration and self.fps and self.fps <= MAX_RATE:
            return round(self.duration * self.fps)
        return self.frames

    def share(self, findings: Findings) -> float:
        """How much of the claimed length is there, in frames or in seconds: the larger share, since
        either claim may be wrong where the file is whole."""
        shares = []
        if self.frames and findings.counted is not None:
            shares.append(findings.counted / self.frames)
        if self.duration and findings.end is not None:
            # In Matroska it may count from zero: FFmpeg's does.
            origin = 0.0 if self.from_zero else self.origin
            shares.append((findings.end - origin) / self.duration)
        return max(shares, default=1.0)


def _error(claims: Claims, findings: Findings, min_share: float) -> str | None:
    """Why a file that was read without an error is bad, or None."""
    share = claims.share(findings)
    if not findings.frames:
        return "no frame could be decoded"
    if share < min_share:
        if claims.frames and findings.counted is not None:
            return f"truncated: {findings.counted} of {claims.frames} frames"
        return f"truncated: {share * claims.duration:.1f} of {claims.duration:.1f} s"
    damaged = sum(number < findings.frames - _CUT_FRAMES for number in findings.damaged)
    if damaged:
        return f"damaged pictures: {damaged} of {findings.frames} frames"
    if not findings.last_keyframe and share >= _COMPLETE:
        return "the last keyframe does not decode"
    return None


def _warnings(claims: Claims, findings: Findings, window: int) -> list[str]:
    """Kinds of oddity of a file that can be used all the same."""
    claimed, counted = claims.frames, findings.counted
    length = counted if counted is not None else claims.length()
    kinds = {
        "no frame count in the header": claimed is None,
        "header frame count wrong": None not in (claimed, counted) and claimed != counted,
        "ends early": claims.share(findings) < _COMPLETE,
        "shorter than the training window": length is not None and length < window,
        "variable frame rate": _is_variable(findings.times),
        "timestamps going backwards": any(b < a for a, b in pairwise(findings.times)),
        "picture size changes": len(findings.sizes) > 1,
        "rotated": findings.first["rotation"] != 0,
        "more than 8 bits": findings.first["bits"] > 8,
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
