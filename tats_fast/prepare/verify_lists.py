"""The two lists that ``verify`` writes: what can be trained on, and what cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tats_fast.data.bad_files import one_field
from tats_fast.data.lists import VIDEO_SUFFIXES, Label, Video


def good_lines(videos: Iterable[Video]) -> list[str]:
    """Lines that ``read_videos`` reads back as the same videos; their paths must be absolute and
    hold no line break.

    A path per line where that is enough, else ``path<TAB>label``. One separator holds for a whole
    list, so a video without a label among labelled ones is written ``path<TAB>0<TAB>-1``.
    """
    videos = list(videos)
    if all(video.label is None and _stands_alone(video.path) for video in videos):
        return [video.path for video in videos]
    return [f"{_quoted(video.path)}\t{_label(video.label)}" for video in videos]


def bad_lines(reasons: Mapping[str, str]) -> list[str]:
    """``path<TAB>reason`` lines in the format of a run's ``bad_files.txt``."""
    return [f"{one_field(path)}\t{one_field(reason)}" for path, reason in reasons.items()]


def _stands_alone(path: str) -> bool:
    return path.lower().endswith(VIDEO_SUFFIXES)


def _quoted(path: str) -> str:
    return path if path == path.strip() else f'"{path}"'


def _label(label: Label) -> str:
    return "0\t-1" if label is None else str(label)
