"""One function over many files, in parallel, on record: a killed run continues where it stopped.

The record has one JSON line per finished file, written as it finishes. The next call with the same
record does again only what it does not find there, what changed since, and what got lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from tats_fast.config import ConfigError
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.data.workers.progress import JobProgress

Item = TypeVar("Item")
Outcome = dict[str, Any]
Stamp = tuple[int, int] | None
"""A file's size in bytes and its time of change in ns; None = there is no such file."""

# Threads that look at recorded files: network storage answers slowly, but many at once.
_STAT_THREADS = 16


def run_jobs(
    function: Callable[[Item], Outcome],
    items: Iterable[Item],
    *,
    record: Path,
    workers: int,
    title: str,
    key: Callable[[Item], str] = str,
    file: Callable[[Item], str] | None = None,
    settings: str = "",
    timeout: float | None = None,
) -> dict[str, Outcome]:
    """Outcome of every item, by its key, in the order of ``items``.

    function: called in a worker process; its outcome is a dict that JSON can hold, with a short
        reason under ``error`` where it failed.
    record: JSONL file that outcomes are appended to, each as it comes: ``key``, ``bytes``,
        ``mtime_ns`` (of the file before the call), ``settings``, ``outcome``. Where a key has
        several lines the last counts.
    workers: processes at most.
    title: what the progress display counts, in the plural ("files").
    key: names an item; items with the same key are done once.
    file: the file whose change makes an item's line outdated; none = the key is its path.
    settings: all that the outcome depends on besides the file; lines of others are outdated.
    timeout: seconds that one item may take; none = no limit.

    An item that raises, kills its process or runs out of time has the outcome ``{"error": reason,
    "lost": True}``. The cause may lie outside the file (too little memory, slow storage), so the
    next call tries it again. Raises ``ConfigError`` if the record cannot be written or another
    process is writing it. On KeyboardInterrupt what was finished is on record.
    """
    file = key if file is None else file
    wanted = {key(item): item for item in items}
    with _locked(record) as lines:
        done = _current(lines, {name: file(item) for name, item in wanted.items()}, settings)
        todo = [name for name in wanted if name not in done]

        def attempt(name: str) -> tuple[Stamp, Outcome]:
            stamp = _stamp(file(wanted[name]))
            try:
                return stamp, function(wanted[name])
            except Exception as error:
                return stamp, _lost(f"{type(error).__name__}: {error}".rstrip(": "))

        if not todo:
            return {name: done[name] for name in wanted}
        failed = sum("error" in outcome for outcome in done.values())
        with (
            JobProgress(title, len(wanted), len(done), failed) as progress,
            Workers(attempt, min(workers, len(todo)), timeout) as pool,
        ):
            for name, answer in pool.map(todo):
                gone = isinstance(answer, Lost)
                stamp, outcome = (None, _lost(answer.reason)) if gone else answer
                _append(lines, name, stamp, settings, outcome)
                done[name] = outcome
                progress.step(failed="error" in outcome)
    return {name: done[name] for name in wanted}


def read_record(record: Path) -> dict[str, Outcome]:
    """The last recorded outcome of every key, whether it is current or not."""
    with open(record, "rb") as lines:
        return {line["key"]: line["outcome"] for line in _parsed(lines)}


def _lost(reason: str) -> Outcome:
    return {"error": " ".join(reason.split()), "lost": True}


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _locked(record: Path) -> Iterator[BinaryIO]:
    """The record, open for reading and appending, for this process alone."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        lines = open(record, "a+b")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"{record}: cannot be written: {error.strerror}") from error
    with lines:
        try:
            # Unlike flock, no worker process that outlives a killed parent keeps this lock.
            fcntl.lockf(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f"{record}: another process is writing it; wait for it or choose another folder"
                ) from error
            # A file system without locks: go on without.
        _drop_torn_line(lines)
        yield lines


def _drop_torn_line(lines: BinaryIO) -> None:
    """Cut off what a kill left of a last line, so that the next line starts on its own."""
    end = lines.seek(0, os.SEEK_END)
    tail = 0
    while tail < end:
        tail = min(end, tail + 65536)
        lines.seek(end - tail)
        newline = lines.read(tail).rfind(b"\n")
        if newline >= 0:
            lines.truncate(end - tail + newline + 1)
            return
    lines.truncate(0)


def _parsed(lines: BinaryIO) -> Iterator[dict[str, Any]]:
    """The record's lines; one that is damaged counts as not there."""
    lines.seek(0)
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("outcome"), dict) and "key" in line:
            yield line


def _current(lines: BinaryIO, files: dict[str, str], settings: str) -> dict[str, Outcome]:
    """Recorded outcomes that still hold, by key; ``files`` has the file of every wanted key."""
    last = {line["key"]: line for line in _parsed(lines) if line["key"] in files}
    usable = [
        line
        for line in last.values()
        if line.get("settings") == settings and not line["outcome"].get("lost")
    ]
    with ThreadPoolExecutor(_STAT_THREADS) as threads:
        stamps = threads.map(_stamp, [files[line["key"]] for line in usable])
        return {
            line["key"]: line["outcome"]
            for line, stamp in zip(usable, stamps, strict=True)
            if (line.get("bytes"), line.get("mtime_ns")) == (stamp or (None, None))
        }


def _append(lines: BinaryIO, name: str, stamp: Stamp, settings: str, outcome: Outcome) -> None:
    size, changed = stamp or (None, None)
    line = {
        "key": name,
        "bytes": size,
        "mtime_ns": changed,
        "settings": settings,
        "outcome": outcome,
    }
    # ASCII escapes also carry names that are not UTF-8.
    lines.write(json.dumps(line).encode("ascii") + b"\n")
    lines.flush()
