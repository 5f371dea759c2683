"""Bookkeeping of videos that could not be decoded: skip and count, but never silently."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tats_fast.config import ConfigError, Failure
from tats_fast.data.files import LineFile
from tats_fast.data.lists import Video

LOGGER = logging.getLogger("tats_fast")


class TooManyBadFiles(Failure):
    """More of the listed videos are undecodable than ``data.max_bad_fraction`` allows."""


@dataclass
class BadFileRecord:
    """The undecodable files of a run, each logged and written once."""

    path: Path
    """File of ``path<TAB>reason`` lines, in which each file has one. Paths are absolute, so that it
    can be used from anywhere."""
    num_videos: int
    """Length of the list."""
    max_fraction: float
    """``data.max_bad_fraction``."""
    writes: bool = True
    """False on ranks that must not write; they count all the same, so that every rank reaches the
    limit at the same clip."""
    skipped: int = 0
    """Clips replaced in this process, repeats included."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Reason of each bad file, by path as written in the record."""
    failing: set[str] = field(default_factory=set)
    """Those that could not be decoded when they were last tried, since this start. They alone count
    towards the limit: what a past outage made unreadable does not."""

    def __post_init__(self) -> None:
        self._file = LineFile(self.path)
        if self.path.exists():
            self.reasons = read_bad_files(self.path)

    def record(self, bad: Iterable[tuple[str, str]], good: Iterable[str] = ()) -> None:
        """Note skipped clips as (path, reason).

        Args:
            good: paths that were decoded in the meantime.

        Raises:
            TooManyBadFiles: the limit is exceeded.
        """
        new: dict[str, str] = {}
        self.failing -= {one_field(path) for path in good}
        for path, reason in bad:
            self.skipped += 1
            self.failing.add(one_field(path))
            name = one_field(os.path.abspath(path))
            if name not in self.reasons:
                new.setdefault(name, one_field(reason))
        self.reasons.update(new)
        for name, reason in new.items():
            LOGGER.warning("skipped a video that cannot be decoded: %s (%s)", name, reason)
        if new and self.writes:
            self._file.append(bad_lines(new))
        if len(self.failing) > self.max_fraction * self.num_videos:
            raise TooManyBadFiles(
                f"{len(self.failing)} of {self.num_videos} listed videos cannot be decoded (see "
                f"{self.path}): more than data.max_bad_fraction={self.max_fraction} allows; repair "
                "the list or raise data.max_bad_fraction"
            )


def read_bad_files(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reason by path, from lines of ``path<TAB>reason``, or of a path alone; ``# ...`` is skipped.

    Raises ``OSError``.
    """
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        fields = [line.rstrip("\r\n").partition("\t") for line in file]
    return {name: reason for name, _, reason in fields if name and not name.startswith("# ")}


def drop_quarantined(videos: Sequence[Video], path: str | os.PathLike[str] | None) -> list[Video]:
    """The videos not named in the quarantine file ``path``; without a file, all of them.

    Raises ``ConfigError`` where the file cannot be read, or names every video.
    """
    if path is None:
        return list(videos)
    try:
        bad = read_bad_files(os.path.expanduser(path))
    except OSError as error:
        raise ConfigError(
            f"data.quarantine={path}: {error.strerror}; give the bad.txt of tats-fast verify"
        ) from error
    named = {os.path.abspath(name) for name in bad}
    usable = [v for v in videos if os.path.abspath(one_field(v.path)) not in named]
    if not usable:
        raise ConfigError(f"data.quarantine={path}: names all of the {len(videos)} listed videos")
    return usable


def bad_lines(reasons: Mapping[str, str]) -> list[str]:
    """Lines of ``path<TAB>reason``, as ``read_bad_files`` takes them."""
    return [f"{one_field(path)}\t{one_field(reason)}" for path, reason in reasons.items()]


def one_field(text: str) -> str:
    """The text without the tabs and line ends that would break a line of ``path<TAB>reason``."""
    return " ".join(text.splitlines()).replace("\t", " ")
