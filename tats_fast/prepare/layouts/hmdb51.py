"""HMDB51: one file per class and split, whose flags say train, test or neither."""

from __future__ import annotations

import os
import re
from collections import defaultdict

from tats_fast.config import ConfigError
from tats_fast.prepare.layouts.annotations import (
    Annotations,
    Row,
    listed,
    official_notes,
    read_lines,
)

_CLASSES = 51
_COUNTS = {"train": 3_570, "val": 1_530}
_FILE = re.compile(r"(.+)_test_split([123])\.txt")
_SPLITS = {"0": None, "1": "train", "2": "val"}
_FOLDERS = ("", "testTrainMulti_7030_splits", "test_train_splits", "splits")


def read_hmdb51(folder: str, split: int = 1) -> Annotations:
    """Class ids are positions in the sorted class names; flag 2 (test) is the split ``val``."""
    files = _files(folder)
    classes = sorted({name for names in files.values() for name in names})
    absent = [name for name in classes if name not in files[split]]
    rows = []
    for label, name in enumerate(classes):
        if name in files[split]:
            rows += _rows(files[split][name], name, label)
    notes = official_notes(classes, _CLASSES, rows, _COUNTS)
    if absent:
        notes.append(f"this split lacks a file that others have, of {listed(absent)}")
    return Annotations(classes, rows, notes)


def _files(folder: str) -> dict[int, dict[str, str]]:
    """Path of each file by split number and class name."""
    for name in _FOLDERS:
        here = os.path.join(folder, name)
        files: dict[int, dict[str, str]] = defaultdict(dict)
        try:
            names = os.listdir(here)
        except OSError:
            continue
        for file in names:
            match = _FILE.fullmatch(file)
            if match:
                files[int(match[2])][match[1]] = os.path.join(here, file)
        if files:
            return files
    raise ConfigError(
        f"annotations={folder}: has no <class>_test_split1.txt; give the folder "
        "testTrainMulti_7030_splits of the official files"
    )


def _rows(path: str, name: str, label: int) -> list[Row]:
    rows = []
    for line in read_lines(path):
        file, _, flag = line.rpartition(" ")
        if not file or flag not in _SPLITS:
            raise ConfigError(f"{path}: expected 'name.avi 0, 1 or 2' in each line, got {line!r}")
        split = _SPLITS[flag]
        if split is not None:
            file = file.strip()
            stem = os.path.splitext(file)[0]
            rows.append(Row(f"{name}/{file}", split, label, (stem,), (name,)))
    return rows
