"""Bookkeeping of videos that could not be decoded: skip and count, but never silently."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tats_fast.config import ConfigError
from tats_fast.data.lists import Video

LOGGER = logging.getLogger("tats_fast")


class TooManyBadFiles(RuntimeError):
    """More of the listed videos are undecodable than ``data.max_bad_fraction`` allows."""


class BadFiles:
    """The undecodable files of a run, each logged and written once.

    path: file of ``path<TAB>reason`` lines; what it already holds counts (a resumed run). None
        keeps the record in memory.
    writes: False on ranks that must not write; they read the file and count all the same, so that
        every rank reaches the limit at the same clip.
    num_videos: length of the list.
    max_fraction: ``data.max_bad_fraction``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        num_videos: int,
        max_fraction: float,
        writes: bool = True,
    ) -> None:
        self.writes = writes
        self.path = None if path is None else Path(path)
        self.num_videos = num_videos
        self.max_fraction = max_fraction
        self.skipped = 0
        """Clips replaced in this process, repeats included."""
        self.reasons: dict[str, str] = {}
        """Reason of each bad file, by path as written in the record."""
        if self.path is not None and self.path.exists():
            self.reasons = read_bad_files(self.path)

    def record(self, bad: Iterable[tuple[str, str]]) -> None:
        """Note skipped clips as (path, reason); raises ``TooManyBadFiles`` past the limit."""
        new = {}
        for path, reason in bad:
            self.skipped += 1
            name = one_field(path)
            if name not in self.reasons and name not in new:
                new[name] = one_field(reason)
        if not new:
            return
        self.reasons.update(new)
        for name, reason in new.items():
            LOGGER.warning("skipped a video that cannot be decoded: %s (%s)", name, reason)
        if self.path is not None and self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{name}\t{reason}\n" for name, reason in new.items())
        if len(self.reasons) > self.max_fraction * self.num_videos:
            see = "" if self.path is None else f" (see {self.path})"
            raise TooManyBadFiles(
                f"{len(self.reasons)} of {self.num_videos} listed videos cannot be decoded{see}: "
                f"more than data.max_bad_fraction={self.max_fraction} allows; repair the list or "
                "raise data.max_bad_fraction"
            )


def read_bad_files(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reason by path, from lines of ``path<TAB>reason``, or of a path alone; ``# ...`` is skipped.

    Raises ``OSError``.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        fields = [line.rstrip("\r\n").partition("\t") for line in file]
    return {name: reason for name, _, reason in fields if name and not name.startswith("# ")}


def drop_quarantined(
    videos: Sequence[Video], path: str | os.PathLike[str] | None, key: str = "data.quarantine"
) -> list[Video]:
    """The videos that the file ``path`` does not name, in their order; none drops none.

    Raises ``ConfigError`` where the file cannot be read, or names every video.
    """
    if path is None:
        return list(videos)
    try:
        bad = read_bad_files(os.path.expanduser(path))
    except OSError as error:
        raise ConfigError(f"{key}={path}: {error.strerror}; give a bad.txt of verify") from error
    named = {os.path.abspath(name) for name in bad}
    kept = [v for v in videos if os.path.abspath(one_field(v.path)) not in named]
    if not kept:
        raise ConfigError(f"{key}={path}: names all of the {len(videos)} listed videos")
    return kept


def one_field(text: str) -> str:
    """The text without the tabs and line ends that would break a line of ``path<TAB>reason``."""
    return " ".join(text.splitlines()).replace("\t", " ")
