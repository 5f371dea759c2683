"""Something-Something v2: one JSON file per split, classes named by templates."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tats_fast.config import ConfigError
from tats_fast.prepare.layouts.annotations import (
    Annotations,
    Row,
    find_file,
    official_notes,
    read_text,
    split_files,
)

_CLASSES = 174
_COUNTS = {"train": 168_913, "val": 24_777}
_STEM = "something-something-v2-"
# The first release and the second name the same files differently.
_FILES = {
    "train": (f"{_STEM}train.json", "train.json"),
    "val": (f"{_STEM}validation.json", "validation.json"),
    "test": (f"{_STEM}test.json", "test.json"),
}


def read_ssv2(folder: str, _split: int = 1) -> Annotations:
    """Class ids are those of the labels file; the test split has none."""
    classes = _classes(find_file(folder, (f"{_STEM}labels.json", "labels.json")))
    ids = {name: label for label, name in enumerate(classes)}
    rows, unknown = [], Counter()
    for split, path in split_files(folder, _FILES):
        for entry in _entries(path):
            stem = str(entry["id"])
            template = entry.get("template")
            if template is None:
                rows.append(Row(stem, split, None, (stem,)))
                continue
            name = template.replace("[", "").replace("]", "")
            if name in ids:
                rows.append(Row(stem, split, ids[name], (stem,)))
            else:
                unknown[name] += 1
    notes = official_notes(classes, _CLASSES, rows, _COUNTS, unknown)
    return Annotations(classes, rows, notes)


def _classes(path: str) -> list[str]:
    """Names in the order of their ids, which the file gives as integers in strings."""
    data = _json(path)
    try:
        by_id = {int(value): str(name) for name, value in data.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: expected an object of class name: id") from error
    if sorted(by_id) != list(range(len(data))):
        raise ConfigError(f"{path}: class ids are not 0 to {len(data) - 1}, each once")
    return [by_id[label] for label in range(len(by_id))]


def _entries(path: str) -> list[dict[str, Any]]:
    data = _json(path)
    if not isinstance(data, list) or not all(isinstance(e, dict) and "id" in e for e in data):
        raise ConfigError(f'{path}: expected a list of objects with "id"')
    return data


def _json(path: str) -> Any:
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
