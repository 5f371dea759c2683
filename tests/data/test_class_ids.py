"""Labels of a list as positions among a classifier's classes."""

from __future__ import annotations

import pytest

from tats_fast.config import ConfigError
from tats_fast.data.labels import class_ids
from tats_fast.data.lists import Video

CLASSES = ("run", "walk", "jump")


def ids(labels, classes, named=False):
    return class_ids([Video("v.mp4", label) for label in labels], classes, named=named).tolist()


def test_labels_become_class_ids():
    assert ids(["jump", "run"], CLASSES) == [2, 0]
    assert ids([2, 0], CLASSES) == [2, 0]
    assert ids([1, 0], ("0", "1")) == [1, 0]
    assert ids([7, 30, 4], ("30", "4", "07")) == [2, 0, 1]  # by name, not position
    assert ids([12, "run"], ("run", "12")) == [1, 0]  # among words "12" is a word
    some = ("1", "10", "2", "other")
    assert ids([1, 2], some) == [1, 2]  # as prepare writes them beside a classes.txt
    assert ids([1, 2], some, named=True) == [0, 2]  # of a list without "other", by its labels
    assert ids([1, 3], some, named=True) == [1, 3]
    for labels, classes, message in (
        (["swim"], CLASSES, "^list: the label swim of v.mp4 is not one of the checkpoint's 3"),
        ([3], CLASSES, r"the label 3 of .* \(0, 1, 2\)"),
        ([-1], CLASSES, "the label -1 of"),
        ([1], ("30", "4"), r"the label 1 of .* 2 classes \(30, 4\)"),
        (["run", 0], CLASSES, "the label 0 of"),
        ([0, None], CLASSES, "v.mp4 has no label; write a list of path and label"),
    ):
        with pytest.raises(ConfigError, match=message):
            ids(labels, classes)
