"""The two lists that ``verify`` writes: what can be trained on, and what cannot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tats_fast.config import ConfigError
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
    return [f"{_one_field(path)}\t{_one_field(reason)}" for path, reason in reasons.items()]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a list at once or not at all. Raises ``ConfigError`` where it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        # The names' own bytes, also those that are not UTF-8.
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _stands_alone(path: str) -> bool:
    return path.lower().endswith(VIDEO_SUFFIXES)


def _quoted(path: str) -> str:
    return path if path == path.strip() else f'"{path}"'


def _label(label: Label) -> str:
    return "0\t-1" if label is None else str(label)


def _one_field(text: str) -> str:
    """As ``BadFiles`` writes it: without the tabs and line ends that would break a line."""
    return " ".join(text.splitlines()).replace("\t", " ")
