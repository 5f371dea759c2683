"""What a job notes of its work, so that the next call continues: a lock, stamps of files, lines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from tarfile import TarError
from typing import IO, Any

from tats_fast.config import ConfigError
from tats_fast.data.shards import stretch_of

Stamp = list[int] | None
"""A file's size in bytes and its time of change in ns; None = there is no such file."""

# Threads that look at files: network storage answers slowly, but many at once.
_STAT_THREADS = 16


def lock(file: IO[Any], name: object) -> None:
    """Keep an open file for this process alone, until it is closed.

    Raises:
        ConfigError: another process has it; the message calls it ``name``.
    """
    try:
        # Unlike flock, no worker process that outlives a killed parent keeps this lock.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ConfigError(
                f"{name}: another process is writing it; wait for it or choose another folder"
            ) from error
        # A file system without locks: go on without.


def stamp(path: str) -> Stamp:
    """The stamp of one file, or of a shard's member."""
    try:
        stretch = stretch_of(path)
        status = os.stat(path if stretch is None else stretch.shard)
    except (OSError, ValueError, TarError):
        return None
    return [status.st_size if stretch is None else stretch.size, status.st_mtime_ns]


def stamps(paths: Iterable[str]) -> list[Stamp]:
    """The stamps of many files."""
    with ThreadPoolExecutor(_STAT_THREADS) as threads:
        return list(threads.map(stamp, paths))


def read_lines(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects in lines of JSON; what a kill has torn counts as not there."""
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
