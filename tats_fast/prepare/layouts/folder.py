"""Any folder of videos: sub-folders are splits, then classes, if all videos lie in some."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tats_fast.prepare.layouts.annotations import Annotations, Row, absent_notes

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def read_folder(paths: Sequence[str]) -> Annotations:
    """Splits and classes of videos from their paths relative to the folder.

    Where every first-level folder with videos is called train, val or test (or nearly so), those
    are the splits; otherwise all is ``train``. Below, the first-level folder is the class, unless
    some video lies in none: then nothing is labelled. Row names and stems are the paths themselves.
    A folder with a line break in its name is no class: neither it nor its videos can be listed.
    """
    parts = [path.split(os.sep) for path in paths]
    split_at_top = bool(parts) and all(len(p) > 1 and p[0].lower() in _SPLITS for p in parts)
    splits = [_SPLITS[p[0].lower()] if split_at_top else "train" for p in parts]
    below = [p[1:] if split_at_top else p for p in parts]
    labelled = bool(below) and all(len(p) > 1 for p in below)
    names = {p[0] for p in below if "\n" not in p[0] and "\r" not in p[0]}
    classes = sorted(names) if labelled else []
    ids = {name: label for label, name in enumerate(classes)}
    rows = [
        Row(path, split, ids.get(p[0]), (path,))
        for path, split, p in zip(paths, splits, below, strict=True)
    ]
    return Annotations(classes, rows, absent_notes(classes, rows, "video"))
