"""``tats-fast prepare``: from a benchmark's official files and its videos to lists for training."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tats_fast.config import ConfigError
from tats_fast.config.checks import require
from tats_fast.data.bad_files import bad_lines, one_field
from tats_fast.data.files import shown, write_lines, writing
from tats_fast.data.lists import is_integer
from tats_fast.data.workers.jobs import run_jobs
from tats_fast.prepare.layouts import READERS, Annotations, Row, VideoIndex, read_folder
from tats_fast.prepare.layouts.annotations import SPLITS, listed
from tats_fast.prepare.layouts.index import target_names
from tats_fast.prepare.manifest import describe, listed_path, read_quarantine
from tats_fast.prepare.options import WITH_SPLITS, PrepareOptions
from tats_fast.prepare.transcode import SUFFIX, transcode

# Folder of the copies below the output folder.
_COPIES = "videos"
# All lists there are, and the names of their classes.
_LISTS = (
    *(f"{split}{kind}.txt" for split in SPLITS for kind in ("", "_unlabelled")),
    "classes.txt",
)
# Seconds that one file may take before it counts as hanging.
_READ_TIMEOUT = 600.0
_TRANSCODE_TIMEOUT = 3600.0


@dataclass
class Entry:
    """An annotated row, and what became of its video."""

    row: Row
    video: str | None = None
    """Absolute path."""
    copy: str | None = None
    """Absolute path of the copy that it gets."""
    state: str = "usable"
    """``usable``, ``missing``, ``unreadable`` or ``quarantined``."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Its part of the manifest; ``error`` has why it is unreadable, or cannot be listed."""

    @property
    def listed(self) -> str:
        """The file that is trained on."""
        return self.copy or self.video


def prepare(options: PrepareOptions) -> int:
    """Write lists, classes and manifest into ``options.out`` and print a summary.

    Returns:
        0, or 1 if no video at all can be used (then no list is written).

    Raises:
        ConfigError: official files that are missing or damaged, or folders that cannot be read or
            written; or classes that are called by one number, such as 1 and 01.
    """
    copied = options.recipe is not None or os.path.exists(_record(options.out, copies=True))
    skip = os.path.join(options.out, _COPIES) if copied else None  # else it is the user's own
    index = VideoIndex(options.videos, skip=skip)
    if options.annotations is None:
        require(bool(index.paths), "videos", options.videos, "no video in this folder or below")
        annotations = read_folder(index.paths)
    else:
        annotations = READERS[options.dataset](options.annotations, options.split or 1)
    labels = _labels(annotations.classes)
    copies = _copies(index, options)
    entries = [_look_up(row, index, annotations.exact_names, copies) for row in annotations.rows]
    if options.quarantine is not None:
        bad = read_quarantine(options.quarantine, options.videos)
        for entry in _usable(entries):  # its source or its copy may be named
            if any(one_field(path) in bad for path in (entry.video, entry.listed)):
                entry.state = "quarantined"
    facts = _facts(entries, options)
    for entry in _usable(entries):
        entry.facts = facts[entry.video]
        if "error" in entry.facts:
            entry.state = "unreadable"
    files = _write(annotations.classes, labels, entries, options)
    old = _set_aside(files, options.out)
    print("\n".join(_summary(annotations, entries, index, files, options)))
    if old:
        print(f"set aside from an earlier call: {', '.join(old)}")
    return 0 if _usable(entries) else 1


def _usable(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.state == "usable"]


def _labels(classes: list[str]) -> list[int]:
    """What lists write for each class: its position, or its name where all names are integers,
    as readers then take a label for a name."""
    if not all(map(is_integer, classes)):
        return list(range(len(classes)))
    labels = [int(name) for name in classes]
    same = [name for name, label in zip(classes, labels, strict=True) if labels.count(label) > 1]
    if same:
        raise ConfigError(f"the classes {listed(same)} share a number; rename all but one of each")
    return labels


def _copies(index: VideoIndex, options: PrepareOptions) -> dict[str, str]:
    """Absolute path of every video's copy by the path in the index; empty without transcoding."""
    if options.recipe is None:
        return {}
    folder = os.path.join(options.out, _COPIES)
    if os.path.commonpath([folder, options.videos]) == folder:
        raise ConfigError(
            f"videos={options.videos}: the copies would go there; write to another folder"
        )
    names = target_names(index.paths, SUFFIX)
    return {path: os.path.join(folder, copy) for path, copy in names.items()}


def _look_up(row: Row, index: VideoIndex, exact_names: bool, copies: dict[str, str]) -> Entry:
    path = index.find(row, exact_names)
    if path is None:
        return Entry(row, state="missing")
    entry = Entry(row, os.path.join(index.root, path), copies.get(path))
    if any(mark in path for mark in "\r\n"):
        entry.state = "unreadable"
        entry.facts = {"error": "a name with a line break cannot be listed"}
    return entry


def _facts(entries: list[Entry], options: PrepareOptions) -> dict[str, dict[str, Any]]:
    """Manifest line of every usable video, or of the copy that is made, by the video's path."""
    recipe, with_hash = options.recipe, options.with_hash
    listed = {entry.video: entry.listed for entry in _usable(entries)}

    def describe_listed(video: str) -> dict[str, Any]:
        if recipe is not None:
            transcode(video, listed[video], recipe)
        return describe(listed[video], with_hash)

    title, timeout = "files read", _READ_TIMEOUT
    settings = f"hash={with_hash}"
    if recipe is not None:
        title, timeout = "files transcoded", _TRANSCODE_TIMEOUT
        settings = f"{recipe} {settings}"
    record = _record(options.out, copies=recipe is not None)
    job = {"title": title, "settings": settings, "timeout": timeout}
    return run_jobs(
        describe_listed, listed, record=record, workers=options.workers, result=listed.get, **job
    )


def _record(out: str, copies: bool) -> Path:
    """Where what was read, or transcoded, is noted."""
    return Path(out, f".prepare-{'copies' if copies else 'files'}.jsonl")


def _write(
    classes: list[str], labels: list[int], entries: list[Entry], options: PrepareOptions
) -> dict[str, int]:
    """All output files; returns the number of lines of each by name."""
    lines: dict[str, list[str]] = {}
    manifest = []
    for entry in _usable(entries):
        row, path = entry.row, listed_path(entry.listed, options.out)
        label = None if row.label is None else labels[row.label]
        named = label is not None or not classes
        name = f"{row.split}.txt" if named else f"{row.split}_unlabelled.txt"
        lines.setdefault(name, []).append(path if label is None else f"{path}\t{label}")
        line = {"path": path, "label": label, "split": row.split, **entry.facts}
        if entry.copy is not None:
            line["source"] = entry.video
        manifest.append(json.dumps(line))  # its escapes also carry names that are not UTF-8
    if classes:
        lines["classes.txt"] = classes
    if manifest:
        lines["manifest.jsonl"] = manifest
    else:
        lines.clear()
    missing = [entry.row for entry in entries if entry.state == "missing"]
    lines["missing.txt"] = [f"{row.name}\t{row.split}" for row in missing]
    bad = {entry.video: entry.facts["error"] for entry in entries if entry.state == "unreadable"}
    lines["unreadable.txt"] = bad_lines(bad)
    for name, content in lines.items():
        write_lines(Path(options.out, name), content)
    return {name: len(content) for name, content in lines.items()}


def _set_aside(files: dict[str, int], out: str) -> list[str]:
    """Rename the lists of an earlier call that this one, which wrote ``files``, did not replace:
    their ids may be those of other classes. Returns the new names."""
    if "manifest.jsonl" not in files:  # no list was written: they still belong together
        return []
    paths = [Path(out, name) for name in _LISTS if name not in files]
    return [_renamed(path).name for path in paths if path.exists()]


def _renamed(path: Path) -> Path:
    with writing(path):
        return path.replace(path.with_name(f"{path.name}.old"))


def _summary(
    annotations: Annotations,
    entries: list[Entry],
    index: VideoIndex,
    files: dict[str, int],
    options: PrepareOptions,
) -> list[str]:
    number = f" split {options.split or 1}" if options.dataset in WITH_SPLITS else ""
    classes = f"{len(annotations.classes)} classes" if annotations.classes else "no labels"
    lines = [f"{options.dataset}{number}: {classes}"]
    lines += [f"note: {note}" for note in annotations.notes + _notes(entries, index)]
    lines.append(
        f"{'':6}{'listed':>9}{'usable':>9}{'missing':>9}{'unreadable':>12}{'left out':>10}"
    )
    for split in SPLITS:
        states = [entry.state for entry in entries if entry.row.split == split]
        if states:
            count = Counter(states)
            lines.append(
                f"{split:6}{len(states):9}{count['usable']:9}{count['missing']:9}"
                f"{count['unreadable']:12}{count['quarantined']:10}"
            )
    written = ", ".join(f"{name} ({count})" for name, count in files.items())
    lines.append(f"wrote {shown(options.out)}: {written}")
    if not _usable(entries):
        lines.append(f"no usable video; check the folder {shown(options.videos)}")
    return lines


def _notes(entries: list[Entry], index: VideoIndex) -> list[str]:
    notes = []
    if index.closed:
        notes.append(f"folders that cannot be read: {listed(index.closed)}")
    for entry in [entry for entry in entries if entry.state == "unreadable"][:3]:
        notes.append(f"unreadable: {shown(entry.video)} ({entry.facts['error']})")
    rows = Counter(entry.video for entry in _usable(entries))
    shared = [os.path.basename(path) for path, count in rows.items() if count > 1]
    if shared:
        notes.append(f"one file for several rows: {listed(shared)}")
    idle = len(index.paths) - len({entry.video for entry in entries} - {None})
    if idle:
        notes.append(f"{idle} videos in the folder are in none of these lists")
    return notes
