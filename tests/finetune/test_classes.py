"""The classes of a fine-tuning run."""

from __future__ import annotations

import pytest

from tats_fast.config import ConfigError
from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.lists import Video
from tats_fast.finetune.classes import label_classes, read_classes


def test_odd_labels_are_spoken_of_once(caplog):
    videos = [Video("a.mp4", "-1"), Video("b.mp4", "walk")]
    known, true, names = label_classes(LabelledDataConfig(train="nowhere.txt"), videos, videos)
    assert names == ("-1", "walk") and known.tolist() == true.tolist() == [0, 1]
    (record,) = caplog.records
    assert record.getMessage().startswith("data.train: -1 is taken as the name of a class")


def test_names_as_prepare_or_an_editor_writes_them(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_bytes(b"\xef\xbb\xbfcoffee\r\ncaf\xe9\r\n")
    assert read_classes(str(file)) == ["coffee", "caf\udce9"]
    file.write_bytes(b"\0\1\n\0\2\n")
    with pytest.raises(ConfigError, match="not a text file"):
        read_classes(str(file))
