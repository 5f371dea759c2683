"""What every benchmark's annotation files come down to, and how such files are found and read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tats_fast.config import ConfigError

SPLITS = ("train", "val", "test")
# Names given in full before "and 12 more".
_NAMED = 5


@dataclass(frozen=True)
class Row:
    """One annotated video."""

    name: str
    """As the annotation file writes it; for messages."""
    split: str
    """``train``, ``val`` or ``test``."""
    label: int | None
    """Class id from 0 on; None where the official files keep it back."""
    stems: tuple[str, ...]
    """File names it may have, without folder and ending, the official one first."""
    folders: tuple[str, ...] = ()
    """Names of folders it may lie in; they choose between several files of the same name."""


@dataclass(frozen=True)
class Annotations:
    """The official files of one benchmark (and split)."""

    classes: list[str]
    """Names; the position is the class id. Empty = no labels at all."""
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    """Where these files differ from the official ones, one sentence each."""
    exact_names: bool = False
    """File names that differ only in case are different videos (YouTube ids)."""


def find_file(folder: str, names: Sequence[str], required: bool = True) -> str | None:
    """The first of ``names`` that is a file in ``folder`` or in a folder directly below.

    Raises ``ConfigError`` if there is no such folder, or no such file where one is ``required``.
    """
    try:
        with os.scandir(folder) as entries:
            below = sorted(entry.path for entry in entries if entry.is_dir())
    except OSError as error:
        raise ConfigError(
            f"annotations={folder}: {error.strerror}; give the folder of the official files"
        ) from error
    paths = (os.path.join(here, name) for here in (folder, *below) for name in names)
    path = next(filter(os.path.isfile, paths), None)
    if path is None and required:
        raise ConfigError(
            f"annotations={folder}: has no {' or '.join(names)}; give the folder of the "
            "benchmark's official annotation files"
        )
    return path


def split_files(folder: str, names: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """(split, path) of each split's file, of which the test split may have none."""
    for split in names:
        path = find_file(folder, names[split], required=split != "test")
        if path is not None:
            yield split, path


def read_text(path: str) -> str:
    """The text of an annotation file, with or without a byte order mark.

    Raises ``ConfigError`` if it cannot be read or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error


def read_lines(path: str) -> list[str]:
    """Its lines without white space around them, blank ones left out; any line ends."""
    lines = (line.strip() for line in re.split(r"\r\n|\n|\r", read_text(path)))
    return [line for line in lines if line]


def listed(names: Iterable[str]) -> str:
    """``'a', 'b'`` of a few names, ``..., and 3 more`` of many."""
    names = list(names)
    text = ", ".join(repr(name) for name in names[:_NAMED])
    more = len(names) - _NAMED
    return f"{text} and {more} more" if more > 0 else text


def official_notes(
    classes: Sequence[str],
    num_classes: int,
    rows: Sequence[Row],
    counts: Mapping[str, int],
    unknown: Counter[str] | None = None,
) -> list[str]:
    """Sentences about every difference from the official numbers of classes and rows.

    Args:
        counts: official number of rows by split; a split that is not in it is not compared.
        unknown: how many rows were left out because of their class, by its name.
    """
    notes = []
    if len(classes) != num_classes:
        notes.append(
            f"{len(classes)} classes; the official files have {num_classes}, and class ids follow "
            "from the set of names"
        )
    sizes = Counter(row.split for row in rows)
    for split, count in counts.items():
        if sizes[split] != count:
            notes.append(f"{sizes[split]} {split} rows; the official files have {count}")
    notes += absent_notes(classes, rows)
    twice = [name for name, n in Counter((r.split, r.name) for r in rows).items() if n > 1]
    if twice:
        notes.append(f"listed more than once: {listed(name for _, name in twice)}")
    if unknown:
        notes.append(f"left out {unknown.total()} rows of the unknown class {listed(unknown)}")
    return notes


def absent_notes(classes: Sequence[str], rows: Sequence[Row], what: str = "row") -> list[str]:
    """A sentence about each split that lacks classes; ``what`` it has one of per video."""
    notes = []
    for split in SPLITS:
        used = {row.label for row in rows if row.split == split}
        absent = [name for label, name in enumerate(classes) if label not in used]
        if absent and used - {None}:
            notes.append(f"no {split} {what} has the class {listed(absent)}")
    return notes
