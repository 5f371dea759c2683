"""Which classes a fine-tuning run has, and which class each of its videos is of."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from tats_fast.config import ConfigError
from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.labels import class_ids, classes_file, label_numbers, warn_of_odd_names
from tats_fast.data.lists import Video

KEYS = ("data.train", "data.eval")


def read_classes(path: str) -> list[str]:
    """Names of class 0, 1, ..., one per line.

    Raises:
        ConfigError: not readable, fewer than two names, or a name given twice; one line.
    """
    try:
        # As prepare writes them: folders' names need not be UTF-8; an editor may have put a mark.
        how = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
        with open(os.path.expanduser(path), **how) as file:
            names = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise ConfigError(f"data.classes={path}: {error.strerror}") from None
    if any("\0" in name for name in names):
        raise ConfigError(f"data.classes={path}: not a text file")
    if len(names) < 2:
        raise ConfigError(f"data.classes={path}: {len(names)} name(s); expected two or more lines")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"data.classes={path}: {name} appears twice")
    return names


def label_classes(
    config: LabelledDataConfig, train: Sequence[Video], held_out: Sequence[Video] | None
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Class ids of both lists, (V,) int64 each, and the classes' names by id.

    Raises:
        ConfigError: a video without label or of an unknown class, or one class only; one line.
    """
    path = classes_file(config)
    if path is None:
        known, true, names = label_numbers(train, train if held_out is None else held_out, KEYS)
        warn_of_odd_names(names, KEYS[0])
        return known, None if held_out is None else true, tuple(names)
    names = read_classes(path)
    known = class_ids(train, names, KEYS[0])
    true = None if held_out is None else class_ids(held_out, names, KEYS[1])
    return known, true, tuple(names)
