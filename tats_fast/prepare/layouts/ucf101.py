"""UCF101: a class index and, for each of three splits, two lists."""

from __future__ import annotations

import os
import re
from collections import Counter

from tats_fast.config import ConfigError
from tats_fast.prepare.layouts.annotations import (
    Annotations,
    Row,
    find_file,
    official_notes,
    read_lines,
)

_CLASSES = 101
_COUNTS = {
    1: {"train": 9_537, "val": 3_783},
    2: {"train": 9_586, "val": 3_734},
    3: {"train": 9_624, "val": 3_696},
}


def read_ucf101(folder: str, split: int = 1) -> Annotations:
    """Class ids are those of classInd.txt less 1; the test list is the split ``val``.

    The class of a row is its folder's, as test rows have no number and copies renumber the train
    rows.
    """
    classes = _classes(find_file(folder, ("classInd.txt",)))
    ids = {name.casefold(): label for label, name in enumerate(classes)}
    rows, unknown, renumbered = [], Counter(), 0
    for name, file in (("train", f"trainlist{split:02d}.txt"), ("val", f"testlist{split:02d}.txt")):
        for line in read_lines(find_file(folder, (file,))):
            path, number = _split_line(line)
            stem = os.path.splitext(os.path.basename(path))[0]
            owner = os.path.dirname(path) or _class_of(stem)
            label = ids.get(owner.casefold())
            if label is None:
                unknown[owner] += 1
                continue
            renumbered += number is not None and number != label + 1
            rows.append(Row(path, name, label, (stem,), (classes[label],)))
    notes = official_notes(classes, _CLASSES, rows, _COUNTS[split], unknown)
    if renumbered:
        notes.append(f"{renumbered} rows are not numbered as in classInd.txt; their folder decides")
    return Annotations(classes, rows, notes)


def _classes(path: str) -> list[str]:
    names = {}
    for line in read_lines(path):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not name.strip():
            raise ConfigError(f"{path}: expected 'number name' in each line, got {line!r}")
        names[int(number)] = name.strip()
    if sorted(names) != list(range(1, len(names) + 1)):
        raise ConfigError(f"{path}: class numbers are not 1 to {len(names)}, each once")
    return [names[number] for number in sorted(names)]


def _split_line(line: str) -> tuple[str, int | None]:
    """``Cls/v_Cls_g08_c01.avi 1`` -> its path, with ``/``, and its number if it has one."""
    match = re.fullmatch(r"(.*\S)\s+([0-9]+)", line)
    path, number = (match[1], int(match[2])) if match else (line, None)
    return path.replace("\\", "/"), number


def _class_of(stem: str) -> str:
    """``v_YoYo_g01_c02`` -> ``YoYo``, for lists that give no folder."""
    match = re.fullmatch(r"v_(.+?)_g\d+_c\d+", stem, re.IGNORECASE)
    return match[1] if match else stem
