"""``tats-fast prepare``: from a benchmark's official files and its videos to lists for training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError
from tats_fast.data.bad_files import one_field
from tats_fast.data.workers.jobs import run_jobs
from tats_fast.data.workers.pool import Lost, Workers
from tats_fast.prepare.files import write_lines
from tats_fast.prepare.layouts import READERS, Annotations, Row, VideoIndex, read_folder
from tats_fast.prepare.layouts.annotations import SPLITS, listed
from tats_fast.prepare.layouts.index import target_names
from tats_fast.prepare.manifest import (
    describe_job,
    listed_path,
    manifest_line,
    read_quarantine,
)
from tats_fast.prepare.transcode import (
    SUFFIX,
    Recipe,
    Task,
    measure_access,
    transcode_job,
)

DATASETS = (*READERS, "folder")
_WITH_SPLITS = ("ucf101", "hmdb51")
# Folder of the copies below the output folder.
_COPIES = "videos"
# Seconds that one file may take before it counts as hanging.
_READ_TIMEOUT = 600.0
_TRANSCODE_TIMEOUT = 3600.0
# Files whose random access is timed after transcoding.
_TIMED_FILES = 6


@dataclass(frozen=True)
class Options:
    """What to prepare. Raises ``ConfigError`` for what does not go together."""

    dataset: str
    videos: str
    out: str
    annotations: str | None = None
    """Folder of the official files; none for ``folder``."""
    split: int | None = None
    """Official split of UCF101 and HMDB51, 1 to 3; none = 1."""
    recipe: Recipe | None = None
    """How to transcode; none = use the videos as they are."""
    quarantine: str | None = None
    """File of ``path<TAB>reason`` lines: videos to leave out."""
    with_hash: bool = False
    """Put the SHA-256 of every file into the manifest."""
    workers: int = 1
    """Processes."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ConfigError(f"{self.dataset}: unknown; expected one of {', '.join(DATASETS)}")
        if self.dataset == "folder" and self.annotations is not None:
            raise ConfigError("--annotations: 'folder' reads none; leave the option out")
        if self.dataset != "folder" and self.annotations is None:
            raise ConfigError(f"--annotations: {self.dataset} needs the folder of official files")
        if self.split is not None and self.dataset not in _WITH_SPLITS:
            raise ConfigError(f"--split: {self.dataset} has no numbered splits; leave it out")
        if self.split not in (None, 1, 2, 3):
            raise ConfigError(f"--split={self.split}: expected 1, 2 or 3")
        if self.workers < 1:
            raise ConfigError(f"--workers={self.workers}: expected at least 1 process")
        if not os.path.isdir(self.videos):
            raise ConfigError(f"--videos={self.videos}: no such folder")
        for name in ("videos", "out"):
            object.__setattr__(self, name, os.path.abspath(getattr(self, name)))
        if any(mark in self.out + self.videos for mark in "\r\n"):
            raise ConfigError("--videos, --out: a list cannot hold a folder with a line end in it")


@dataclass
class Sorting:
    """The annotated rows by what became of their videos."""

    found: list[tuple[Row, str]] = field(default_factory=list)
    """With absolute path."""
    missing: list[Row] = field(default_factory=list)
    bad: list[tuple[Row, str, str]] = field(default_factory=list)
    """With absolute path and reason: unreadable, or not to be written into a list."""
    quarantined: list[tuple[Row, str]] = field(default_factory=list)
    """With absolute path."""

    def count(self, split: str) -> dict[str, int]:
        """Rows of a split in each group."""
        groups: dict[str, Iterable[Row]] = {
            "usable": (row for row, _ in self.found),
            "missing": self.missing,
            "unreadable": (row for row, _, _ in self.bad),
            "quarantined": (row for row, _ in self.quarantined),
        }
        return {name: sum(row.split == split for row in rows) for name, rows in groups.items()}


def prepare(options: Options) -> int:
    """Write lists, classes and manifest into ``options.out`` and print a summary.

    Returns 0, or 1 if no video at all can be used (then no list is written). Raises ``ConfigError``
    for official files that are missing or damaged, and for folders that cannot be read or written.
    """
    index = VideoIndex(options.videos, skip=os.path.join(options.out, _COPIES))
    if options.annotations is None:
        annotations = read_folder(index.paths)
    else:
        annotations = READERS[options.dataset](options.annotations, options.split or 1)
    sorting = _look_up(annotations, index)
    targets = _targets(index, options)
    if options.quarantine is not None:
        _leave_out(sorting, targets, read_quarantine(options.quarantine, options.videos))
    facts = _facts(sorting, targets, options)
    _drop_unreadable(sorting, facts)
    files = _write(annotations, sorting, targets, facts, options)
    print("\n".join(_summary(annotations, sorting, index, files, options)))
    if targets and sorting.found:
        print(f"random access, measured: {_speed(sorting, targets)}")
    return 0 if sorting.found else 1


def _look_up(annotations: Annotations, index: VideoIndex) -> Sorting:
    sorting = Sorting()
    for row in annotations.rows:
        path = index.find(row, annotations.exact_names)
        if path is None:
            sorting.missing.append(row)
        elif any(mark in path for mark in "\r\n"):
            whole = os.path.join(index.root, path)
            sorting.bad.append((row, whole, "line end in its name, which no list can hold"))
        else:
            sorting.found.append((row, os.path.join(index.root, path)))
    return sorting


def _targets(index: VideoIndex, options: Options) -> dict[str, str]:
    """Absolute path of the copy of every video; empty without transcoding."""
    if options.recipe is None:
        return {}
    folder = os.path.join(options.out, _COPIES)
    if os.path.commonpath([folder, options.videos]) == folder:
        raise ConfigError(
            f"--videos={options.videos}: the copies would go there; give another --out"
        )
    return {
        os.path.join(index.root, path): os.path.join(folder, copy)
        for path, copy in target_names(index.paths, SUFFIX).items()
    }


def _leave_out(sorting: Sorting, targets: dict[str, str], reasons: dict[str, str]) -> None:
    """Move quarantined videos; their source or their copy may be named."""
    kept = []
    for row, path in sorting.found:
        names = (one_field(path), one_field(targets.get(path, path)))
        named = any(name in reasons for name in names)
        (sorting.quarantined if named else kept).append((row, path))
    sorting.found = kept


def _facts(sorting: Sorting, targets: dict[str, str], options: Options) -> dict[str, Any]:
    """Manifest entry of every found video (of its copy where it gets one) by absolute path."""
    paths = list(dict.fromkeys(path for _, path in sorting.found))
    folder = Path(options.out)
    hashed = f"hash={options.with_hash}"
    if options.recipe is None:
        return run_jobs(
            partial(describe_job, with_hash=options.with_hash),
            paths,
            record=folder / ".prepare-files.jsonl",
            workers=options.workers,
            title="files read",
            settings=hashed,
            timeout=_READ_TIMEOUT,
        )
    work = partial(transcode_job, recipe=options.recipe, with_hash=options.with_hash)
    tasks = [Task(path, targets[path]) for path in paths]
    facts = run_jobs(
        work,
        tasks,
        record=folder / ".prepare-copies.jsonl",
        workers=options.workers,
        title="files transcoded",
        key=lambda task: task.source,
        settings=f"{options.recipe} {hashed}",
        timeout=_TRANSCODE_TIMEOUT,
    )
    # The record knows of changed sources, not of copies that were deleted since.
    gone = [t for t in tasks if "error" not in facts[t.source] and not os.path.exists(t.target)]
    if gone:
        print(f"{len(gone)} copies are gone and are made again", flush=True)
        with Workers(work, min(options.workers, len(gone)), _TRANSCODE_TIMEOUT) as pool:
            for task, outcome in pool.map(gone):
                lost = isinstance(outcome, Lost)
                facts[task.source] = {"error": outcome.reason} if lost else outcome
    return facts


def _drop_unreadable(sorting: Sorting, facts: dict[str, Any]) -> None:
    kept = []
    for row, path in sorting.found:
        error = facts[path].get("error")
        if error is None:
            kept.append((row, path))
        else:
            sorting.bad.append((row, path, error))
    sorting.found = kept


def _write(
    annotations: Annotations,
    sorting: Sorting,
    targets: dict[str, str],
    facts: dict[str, Any],
    options: Options,
) -> dict[str, int]:
    """All output files; returns the number of lines of each by name."""
    lines: dict[str, list[str]] = {}
    manifest = []
    for row, source in sorting.found:
        path = listed_path(targets.get(source, source), options.out)
        named = row.label is not None or not annotations.classes
        name = f"{row.split}.txt" if named else f"{row.split}_unlabelled.txt"
        lines.setdefault(name, []).append(path if row.label is None else f"{path}\t{row.label}")
        entry = {"path": path, "label": row.label, "split": row.split, **facts[source]}
        if source in targets:
            entry["source"] = source
        manifest.append(manifest_line(entry))
    if annotations.classes:
        lines["classes.txt"] = annotations.classes
    if sorting.found:
        lines["manifest.jsonl"] = manifest
    else:
        lines.clear()
    lines["missing.txt"] = [f"{row.name}\t{row.split}" for row in sorting.missing]
    reasons = {one_field(path): one_field(reason) for _, path, reason in sorting.bad}
    lines["unreadable.txt"] = [f"{path}\t{reason}" for path, reason in reasons.items()]
    for name, content in lines.items():
        write_lines(Path(options.out, name), content)
    return {name: len(content) for name, content in lines.items()}


def _summary(
    annotations: Annotations,
    sorting: Sorting,
    index: VideoIndex,
    files: dict[str, int],
    options: Options,
) -> list[str]:
    number = f" split {options.split or 1}" if options.dataset in _WITH_SPLITS else ""
    classes = f"{len(annotations.classes)} classes" if annotations.classes else "no labels"
    lines = [f"{options.dataset}{number}: {classes}"]
    lines += [f"note: {note}" for note in annotations.notes + _found_notes(sorting, index)]
    lines.append(
        f"{'':6}{'listed':>9}{'usable':>9}{'missing':>9}{'unreadable':>12}{'left out':>10}"
    )
    for split in SPLITS:
        counts = sorting.count(split)
        if any(counts.values()):
            usable, missing, bad, quarantined = counts.values()
            lines.append(
                f"{split:6}{sum(counts.values()):9}{usable:9}{missing:9}{bad:12}{quarantined:10}"
            )
    written = ", ".join(f"{name} ({count})" for name, count in files.items())
    lines.append(f"wrote {_printable(options.out)}: {written}")
    if not sorting.found:
        lines.append(f"no usable video; check --videos={_printable(options.videos)}")
    return lines


def _found_notes(sorting: Sorting, index: VideoIndex) -> list[str]:
    notes = []
    if index.closed:
        notes.append(f"folders that cannot be read: {listed(index.closed)}")
    for _, path, reason in sorting.bad[:3]:
        notes.append(f"unreadable: {_printable(path)} ({reason})")
    paths = Counter(path for row, path in sorting.found)
    shared = [os.path.basename(path) for path, n in paths.items() if n > 1]
    if shared:
        notes.append(f"one file for several rows: {listed(shared)}")
    used = {*paths, *(path for _, path, _ in sorting.bad), *(p for _, p in sorting.quarantined)}
    idle = len(index.paths) - len(used)
    if idle:
        notes.append(f"{idle} videos in the folder are in none of these lists")
    return notes


def _speed(sorting: Sorting, targets: dict[str, str]) -> str:
    paths = [path for _, path in sorting.found]
    step = max(1, len(paths) // _TIMED_FILES)
    timed = [Task(path, targets[path]) for path in paths[::step][:_TIMED_FILES]]
    return f"{measure_access(timed)} on {len(timed)} files"


def _printable(text: str) -> str:
    """For a terminal: bytes of a name that are not UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
