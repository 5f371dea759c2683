"""One function over many files, in parallel, on record: a killed run continues where it stopped.

The record has one JSON line per finished file, written as it finishes. The next call with the same
record does again only what it does not find there, what changed since, and what got lost.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tats_fast.data.files import writing
from tats_fast.data.opening import DecodeError
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.data.workers.progress import JobProgress
from tats_fast.data.workers.record import Stamp, lock, read_lines, stamp, stamps

Outcome = dict[str, Any]


def run_jobs(
    function: Callable[[str], Outcome],
    paths: Iterable[str],
    *,
    record: Path,
    workers: int,
    title: str,
    result: Callable[[str], str] | None = None,
    settings: str = "",
    timeout: float | None = None,
) -> dict[str, Outcome]:
    """Outcome of every file, by its path, in the order of ``paths``; each is worked on once.

    A file for which ``function`` raises anything but ``DecodeError``, kills its process or runs out
    of time has the outcome ``{"error": reason, "lost": True}``. The cause may lie outside the file
    (too little memory, slow storage), so the next call tries it again. On KeyboardInterrupt what
    was finished is on record.

    Args:
        function: called in a worker process; its outcome is a dict that JSON can hold, with a short
            reason under ``error`` where it failed; that of a ``DecodeError`` becomes one.
        record: JSONL file that outcomes are appended to, each as it comes: ``key`` (the path),
            ``bytes``, ``mtime_ns`` (of the file before the call), ``settings``,
            ``outcome``, and ``result`` (bytes and mtime_ns of what it left behind). Where a path
            has several lines the last counts; it is outdated once the file changes.
        workers: processes at most.
        title: what the progress display counts, in the plural ("files").
        result: the file that a path leaves behind; without it the work is done again.
        settings: all that the outcome depends on besides the file; lines of others are outdated.
        timeout: seconds that one file may take; none = no limit.

    Raises:
        ConfigError: the record cannot be written, or another process is writing it.
    """
    paths = list(dict.fromkeys(paths))
    with _locked(record) as lines:
        current = _current(lines, paths, settings)
        done = {path: line["outcome"] for path, line in current.items()}
        if result is not None:
            good = [path for path, outcome in done.items() if "error" not in outcome]
            found = zip(good, stamps(map(result, good)), strict=True)
            # Another source's may lie there by now.
            gone = [p for p, now in found if now is None or now != current[p].get("result")]
            if gone:
                print(f"{len(gone)} results are gone or changed, and are made again", flush=True)
            for path in gone:
                del done[path]
        todo = [path for path in paths if path not in done]

        def attempt(path: str) -> tuple[Stamp, Outcome]:
            before = stamp(path)
            try:
                return before, function(path)
            except DecodeError as error:
                return before, {"error": error.reason}
            except Exception as error:
                return before, _lost(f"{type(error).__name__}: {error}".rstrip(": "))

        if not todo:
            return {path: done[path] for path in paths}
        failed = sum("error" in outcome for outcome in done.values())
        with (
            JobProgress(title, len(paths), len(done), failed) as progress,
            Workers(attempt, min(workers, len(todo)), timeout) as pool,
        ):
            for path, answer in pool.map(todo):
                is_lost = isinstance(answer, Lost)
                before, outcome = (None, _lost(answer.reason)) if is_lost else answer
                left_behind = None if result is None else stamp(result(path))
                _append(lines, path, before, settings, outcome, left_behind)
                done[path] = outcome
                progress.step(failed="error" in outcome)
    return {path: done[path] for path in paths}


def _lost(reason: str) -> Outcome:
    return {"error": " ".join(reason.split()), "lost": True}


@contextlib.contextmanager
def _locked(record: Path) -> Iterator[BinaryIO]:
    """The record, open for reading and appending, for this process alone."""
    with writing(record):
        record.parent.mkdir(parents=True, exist_ok=True)
        lines = open(record, "a+b")  # noqa: SIM115
    with lines:
        lock(lines, record)
        # What a kill left of a last line goes, so that the next line starts on its own.
        lines.seek(0)
        lines.truncate(lines.read().rfind(b"\n") + 1)
        yield lines


def _current(lines: BinaryIO, paths: Iterable[str], settings: str) -> dict[str, dict[str, Any]]:
    """Lines of ``paths`` whose outcomes still hold; a damaged line counts as not there."""
    lines.seek(0)
    whole = [line for line in read_lines(lines) if isinstance(line.get("outcome"), dict)]
    last = {line.get("key"): line for line in whole}
    usable = [
        path
        for path in paths
        if path in last
        and last[path].get("settings") == settings
        and not last[path]["outcome"].get("lost")
    ]
    return {
        path: last[path]
        for path, now in zip(usable, stamps(usable), strict=True)
        if [last[path].get("bytes"), last[path].get("mtime_ns")] == (now or [None, None])
    }


def _append(
    lines: BinaryIO, path: str, before: Stamp, settings: str, outcome: Outcome, result: Stamp
) -> None:
    size, changed = before or (None, None)
    line = {"key": path, "bytes": size, "mtime_ns": changed, "settings": settings}
    line |= {"result": result} if result is not None else {}
    # ASCII escapes also carry names that are not UTF-8.
    lines.write(json.dumps(line | {"outcome": outcome}).encode("ascii") + b"\n")
    lines.flush()
