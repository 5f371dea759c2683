"""Kinetics-400: one CSV file per split; which videos still exist differs from copy to copy."""

from __future__ import annotations

import csv
import io

from tats_fast.config import ConfigError
from tats_fast.prepare.layouts.annotations import (
    Annotations,
    Row,
    official_notes,
    read_text,
    split_files,
)

_CLASSES = 400
_FILES = {
    "train": ("train.csv", "kinetics_train.csv", "kinetics-400_train.csv"),
    "val": ("validate.csv", "val.csv", "kinetics_val.csv", "kinetics-400_val.csv"),
    "test": ("test.csv", "kinetics_test.csv", "kinetics-400_test.csv"),
}
_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")


def read_kinetics400(folder: str, _split: int = 1) -> Annotations:
    """Class ids are positions in the sorted names of the train and val files."""
    tables = {split: _table(path) for split, path in split_files(folder, _FILES)}
    names = {entry["label"] for split in ("train", "val") for entry in tables[split]}
    classes = sorted(names - {""})
    ids = {name: label for label, name in enumerate(classes)} | {"": None}
    rows, unknown = [], set()
    for split, table in tables.items():
        for entry in table:
            name = entry["label"]
            if name in ids:
                rows.append(_row(entry, split, ids[name]))
            else:
                unknown.add(name)
    notes = official_notes(classes, _CLASSES, rows, {})
    if unknown:
        notes.append(f"left out test rows of classes that no train row has: {sorted(unknown)}")
    return Annotations(classes, rows, notes, exact_names=True)


def _row(entry: dict[str, str], split: str, label: int | None) -> Row:
    video, start, end = entry["youtube_id"].strip(), entry["time_start"], entry["time_end"]
    stems = (video,)
    if start and end:
        first, last = int(float(start)), int(float(end))
        stems = (f"{video}_{first:06d}_{last:06d}", f"{video}_{first}_{last}", video)
    # Copies keep each split in a folder: it decides where one video lies in two places.
    return Row(stems[0], split, label, stems, (split, entry["label"]))


def _table(path: str) -> list[dict[str, str]]:
    """The rows by column name; without a header, the official order of columns."""
    lines = [row for row in csv.reader(io.StringIO(read_text(path))) if any(row)]
    header = [name.strip() for name in lines[0]] if lines else []
    if "youtube_id" in header:
        lines = lines[1:]
    elif len(header) in (5, 6):
        header = _COLUMNS[: len(header)]
    else:
        raise ConfigError(f"{path}: expected the columns {','.join(_COLUMNS[:5])}")
    empty = dict.fromkeys(("label", "time_start", "time_end"), "")
    table = [empty | dict(zip(header, line, strict=False)) for line in lines]
    for number, entry in enumerate(table, start=1):
        # Some copies write spaces as underscores, which would sort differently.
        entry["label"] = entry["label"].strip().strip('"').replace("_", " ")
        try:
            if not entry["youtube_id"]:
                raise ValueError
            float(entry["time_start"] or 0), float(entry["time_end"] or 0)
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{path}: row {number} has no id or no times in seconds") from error
    return table
