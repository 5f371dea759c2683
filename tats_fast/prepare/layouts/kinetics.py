"""Kinetics-400: one CSV file per split; which videos still exist differs from copy to copy."""

from __future__ import annotations

import csv
import io

from tats_fast.config import ConfigError
from tats_fast.prepare.layouts.annotations import (
    Annotations,
    Row,
    find_file,
    official_notes,
    read_text,
    require_file,
)

_CLASSES = 400
_FILES = {
    "train": ("train.csv", "kinetics_train.csv", "kinetics-400_train.csv"),
    "val": ("validate.csv", "val.csv", "kinetics_val.csv", "kinetics-400_val.csv"),
    "test": ("test.csv", "kinetics_test.csv", "kinetics-400_test.csv"),
}
_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
# Folders that copies keep the splits in; they decide where one video lies in two places.
_FOLDERS = {"train": "train", "val": "val", "test": "test"}


def read_kinetics400(folder: str, _split: int = 1) -> Annotations:
    """Class ids are positions in the sorted names of the train and val files.

    Raises ``ConfigError`` for a missing or damaged file.
    """
    tables = {}
    for split, names in _FILES.items():
        path = find_file(folder, names) if split == "test" else require_file(folder, names)
        if path is not None:
            tables[split] = _table(path)
    classes = sorted(
        {name for split in ("train", "val") for entry in tables[split] if (name := _label(entry))}
    )
    ids = {name: label for label, name in enumerate(classes)}
    rows, unknown = [], set()
    for split, table in tables.items():
        for entry in table:
            name = _label(entry)
            if name and name not in ids:
                unknown.add(name)
            else:
                rows.append(_row(entry, split, ids[name] if name else None))
    notes = official_notes(classes, _CLASSES, rows, {})
    if unknown:
        notes.append(f"test rows left out, of classes that no train row has: {sorted(unknown)}")
    return Annotations(classes, rows, notes, exact_names=True)


def _label(entry: dict[str, str]) -> str:
    """Some copies write spaces as underscores, which would sort differently."""
    return (entry.get("label") or "").strip().strip('"').replace("_", " ")


def _row(entry: dict[str, str], split: str, label: int | None) -> Row:
    video, start, end = entry["youtube_id"].strip(), entry["time_start"], entry["time_end"]
    stems = (video,)
    if start and end:
        first, last = int(float(start)), int(float(end))
        stems = (f"{video}_{first:06d}_{last:06d}", f"{video}_{first}_{last}", video)
    return Row(stems[0], split, label, stems, (_FOLDERS[split], _label(entry)))


def _table(path: str) -> list[dict[str, str]]:
    """The rows by column name; without a header, the official order of columns."""
    lines = [row for row in csv.reader(io.StringIO(read_text(path))) if any(row)]
    header = [name.strip() for name in lines[0]] if lines else []
    if "youtube_id" in header:
        lines = lines[1:]
    elif header and len(header) in (5, 6):
        header = list(_COLUMNS[: len(header)])
    else:
        raise ConfigError(f"{path}: expected the columns {','.join(_COLUMNS[:5])}")
    table = [dict(zip(header, line, strict=False)) for line in lines]
    for number, entry in enumerate(table, start=1):
        entry.setdefault("time_start", "")
        entry.setdefault("time_end", "")
        try:
            if not entry["youtube_id"]:
                raise ValueError
            float(entry["time_start"] or 0), float(entry["time_end"] or 0)
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{path}: row {number} has no id or no times in seconds") from error
    return table
