"""Official annotation files in all their variants, and finding the videos they name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tats_fast.config import ConfigError
from tats_fast.prepare.layouts import READERS, VideoIndex, read_folder
from tats_fast.prepare.layouts.annotations import Row
from tats_fast.prepare.layouts.index import target_names


def put(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


def touch(folder: Path, *names: str) -> Path:
    return put(folder, dict.fromkeys(names, "x"))


def labels(annotations, split: str) -> dict[str, int | None]:
    return {row.name: row.label for row in annotations.rows if row.split == split}


UCF = {
    "ucfTrainTestlist/classInd.txt": "1 Archery\r\n2 HandstandPushups\r\n3 YoYo\r\n",
    "ucfTrainTestlist/trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n\r\nYoYo/v_YoYo_g08_c01.avi 3\r\n",
    "ucfTrainTestlist/testlist01.txt": "Archery/v_Archery_g01_c01.avi\r\n",
    "ucfTrainTestlist/trainlist02.txt": "YoYo/v_YoYo_g01_c01.avi 3\n",
    "ucfTrainTestlist/testlist02.txt": "v_handstandpushups_g02_c01.avi\n",
}


def test_ucf101_numbers_from_1_and_crlf(tmp_path):
    read = READERS["ucf101"](str(put(tmp_path, UCF)), 1)
    assert read.classes == ["Archery", "HandstandPushups", "YoYo"]
    assert list(labels(read, "train").values()) == [0, 1, 2]
    assert labels(read, "val") == {"Archery/v_Archery_g01_c01.avi": 0}
    notes = "\n".join(read.notes)
    assert "3 classes; the official files have 101" in notes
    assert "3 train rows; the official files have 9537" in notes
    assert "no val row has the class 'HandstandPushups', 'YoYo'" in notes


def test_ucf101_other_split_without_folders(tmp_path):
    read = READERS["ucf101"](str(put(tmp_path, UCF)), 2)
    assert list(labels(read, "train").values()) == [2]
    assert list(labels(read, "val").values()) == [1]


def test_ucf101_unknown_class_and_renumbered_rows_are_named(tmp_path):
    rows = "Archery/v_Archery_g08_c01.avi 0\nKnitting/v_Knitting_g08_c01.avi 1\n"
    put(tmp_path, UCF | {"ucfTrainTestlist/trainlist01.txt": rows})
    read = READERS["ucf101"](str(tmp_path), 1)
    assert list(labels(read, "train").values()) == [0]
    notes = "\n".join(read.notes)
    assert "left out 1 rows of the unknown class 'Knitting'" in notes
    assert "1 rows are not numbered as in classInd.txt" in notes


HMDB = {
    "wave_test_split1.txt": "Wave_(HQ)_#1+!&_wave_f_cm.avi 1 \nb wave.avi 2 \nc.avi 0 \n",
    "brush_hair_test_split1.txt": "April_brush_hair.avi 1 \nsecond.avi 2\n",
    "brush_hair_test_split2.txt": "April_brush_hair.avi 2 \n",
    "wave_test_split2.txt": "c.avi 1 \n",
    "wave_test_split3.txt": "c.avi 1 \n",
}


@pytest.mark.parametrize("below", ["", "testTrainMulti_7030_splits/"])
def test_hmdb51_flags_and_odd_names(tmp_path, below):
    put(tmp_path, {below + name: text for name, text in HMDB.items()})
    read = READERS["hmdb51"](str(tmp_path), 1)
    assert read.classes == ["brush_hair", "wave"]
    assert labels(read, "train") == {
        "brush_hair/April_brush_hair.avi": 0,
        "wave/Wave_(HQ)_#1+!&_wave_f_cm.avi": 1,
    }
    assert labels(read, "val") == {"brush_hair/second.avi": 0, "wave/b wave.avi": 1}
    third = READERS["hmdb51"](str(tmp_path), 3)
    assert third.classes == read.classes  # ids do not depend on the split
    assert any("lacks a file that others have, of 'brush_hair'" in note for note in third.notes)


SSV2_LABELS = json.dumps({"Pushing something": "1", "Holding something": "0"})
SSV2_TRAIN = json.dumps(
    [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]"},
        {"id": 42, "label": "x", "template": "Pushing [something]"},
        {"id": "7", "label": "x", "template": "Eating [something]"},
    ]
)


@pytest.mark.parametrize("stem", ["", "something-something-v2-"])
def test_ssv2_ids_as_text_brackets_and_test_without_labels(tmp_path, stem):
    files = {
        "labels.json": SSV2_LABELS,
        "train.json": SSV2_TRAIN,
        "validation.json": SSV2_TRAIN,
        "test.json": json.dumps([{"id": "9"}]),
    }
    put(tmp_path, {stem + name: text for name, text in files.items()})
    read = READERS["ssv2"](str(tmp_path), 1)
    assert read.classes == ["Holding something", "Pushing something"]
    assert labels(read, "train") == labels(read, "val") == {"78687": 0, "42": 1}
    assert labels(read, "test") == {"9": None}
    assert any("left out 2 rows of the unknown class 'Eating something'" in n for n in read.notes)


KINETICS_HEAD = "label,youtube_id,time_start,time_end,split"


@pytest.mark.parametrize("val", ["val.csv", "validate.csv"])
def test_kinetics_names_and_sorted_classes(tmp_path, val):
    files = {
        "train.csv": f'{KINETICS_HEAD},is_cc\r\n"zumba, fast",-a_bcdefghij,12,22,train,0\r\n'
        "abseiling,__0123456_-,0,10,train,0\r\n",
        val: f"{KINETICS_HEAD}\nzumba_fast,xxxxxxxxxxx,100,110,validate\n",
        "test.csv": "youtube_id,time_start,time_end,split\nyyyyyyyyyyy,1,11,test\n",
    }
    read = READERS["kinetics400"](str(put(tmp_path, files)), 1)
    assert read.classes == ["abseiling", "zumba fast", "zumba, fast"]
    assert labels(read, "train") == {
        "-a_bcdefghij_000012_000022": 2,
        "__0123456_-_000000_000010": 0,
    }
    assert labels(read, "val") == {"xxxxxxxxxxx_000100_000110": 1}
    assert labels(read, "test") == {"yyyyyyyyyyy_000001_000011": None}


def test_kinetics_labelled_test_and_no_header(tmp_path):
    files = {
        "train.csv": "abseiling,aaaaaaaaaaa,1,2,train\n",
        "val.csv": f"{KINETICS_HEAD}\nabseiling,bbbbbbbbbbb,1,2,val\n",
        "test.csv": f"{KINETICS_HEAD}\nabseiling,ccccccccccc,1,2,test\nnew,d,1,2,test\n",
    }
    read = READERS["kinetics400"](str(put(tmp_path, files)), 1)
    assert labels(read, "train") == {"aaaaaaaaaaa_000001_000002": 0}
    assert labels(read, "test") == {"ccccccccccc_000001_000002": 0}
    assert any("left out" in note and "new" in note for note in read.notes)


def test_kinetics_files_are_found_under_every_usual_name(tmp_path):
    touch(
        tmp_path,
        "train/riding a bike/-a_bcdefghij_000012_000022.mp4",
        "val/eating_cake/abc_1_11.mkv",
        "flat/xyz.webm",
        "train/riding_a_bike/twice.mp4",
        "val/other/twice.mp4",
        "._xyz.mp4",
    )
    index = VideoIndex(str(tmp_path))

    def find(*stems: str) -> str | None:
        folders = ("val", "other")
        return index.find(Row(stems[0], "val", 0, stems, folders), exact_names=True)

    assert find("-a_bcdefghij_000012_000022").startswith("train/riding a bike/")
    assert find("abc_000001_000011", "abc_1_11", "abc") == "val/eating_cake/abc_1_11.mkv"
    assert find("xyz_000001_000011", "xyz") == "flat/xyz.webm"
    assert find("twice") == "val/other/twice.mp4"
    assert find("XYZ") is None  # YouTube ids differ by case
    assert index.find(Row("XYZ.avi", "val", 0, ("XYZ",))) == "flat/xyz.webm"


def test_ucf101_spelling_differs_between_copies(tmp_path):
    touch(tmp_path, "HandStandPushups/v_HandStandPushups_g08_c01.avi")
    row = Row("x.avi", "train", 0, ("v_HandstandPushups_g08_c01",), ("HandstandPushups",))
    assert VideoIndex(str(tmp_path)).find(row) is not None


def test_scan_follows_links_once_and_skips_a_folder(tmp_path):
    touch(tmp_path, "a/b.mp4", "out/videos/b.mp4", "notes.txt", ".hidden/c.mp4")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert VideoIndex(str(tmp_path), skip=str(tmp_path / "out/videos")).paths == ["a/b.mp4"]


def test_scan_asks_no_file_for_anything(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{n}.mp4" for n in range(100)))

    def refuse(*_args, **_kwargs):
        raise AssertionError("a stat per file costs minutes on network storage")

    monkeypatch.setattr("os.stat", refuse)
    assert len(VideoIndex(str(tmp_path)).paths) == 100


def test_a_closed_folder_does_not_end_the_search(tmp_path, monkeypatch):
    touch(tmp_path, "a/b.mp4", "lost+found/c.mp4")
    real = os.scandir

    def scandir(folder):
        if folder.rstrip("/").endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    index = VideoIndex(str(tmp_path))
    assert (index.paths, index.closed) == (["a/b.mp4"], ["lost+found"])
    with pytest.raises(ConfigError, match=r"lost\+found: Permission denied"):
        VideoIndex(str(tmp_path / "lost+found"))


def test_folder_of_classes_splits_or_neither():
    classes = read_folder(["b/1.mp4", "a/x/2.mp4"])
    assert classes.classes == ["a", "b"]
    assert labels(classes, "train") == {"b/1.mp4": 1, "a/x/2.mp4": 0}
    mixed = read_folder(["b/1.mp4", "2.mp4"])
    assert mixed.classes == [] and labels(mixed, "train") == {"b/1.mp4": None, "2.mp4": None}
    split = read_folder(["train/a/1.mp4", "val/b/2.mp4"])
    assert split.classes == ["a", "b"]
    assert labels(split, "train") == {"train/a/1.mp4": 0}
    assert labels(split, "val") == {"val/b/2.mp4": 1}
    assert "no train video has the class 'b'" in split.notes
    plain = read_folder(["train/1.mp4", "validation/2.mp4"])
    assert plain.classes == [] and len(labels(plain, "val")) == 1


def test_copies_have_different_names():
    several = target_names(["x.mp4", "x.mp4.webm", "x.webm"], ".mp4")
    assert list(several.values()) == ["x.mp4.mp4", "x.mp4.2.mp4", "x.webm.mp4"]
    names = target_names(["a/b.avi", "a/b.webm", "a/c.avi"], ".mp4")
    assert names == {"a/b.avi": "a/b.avi.mp4", "a/b.webm": "a/b.webm.mp4", "a/c.avi": "a/c.mp4"}


BROKEN = {
    "ucf101": [
        ({}, "has no classInd.txt"),
        (UCF | {"ucfTrainTestlist/classInd.txt": "Archery\n"}, "expected 'number name'"),
        (UCF | {"ucfTrainTestlist/classInd.txt": "1 A\n3 B\n"}, "not 1 to 2"),
    ],
    "hmdb51": [
        ({}, "no <class>_test_split1.txt"),
        (HMDB | {"wave_test_split1.txt": "a.avi 3\n"}, "'a.avi 3'"),
    ],
    "ssv2": [
        ({}, "labels.json"),
        ({"labels.json": "{"}, "not JSON"),
        ({"labels.json": '{"a": "1"}'}, "class ids are not 0 to 0"),
        ({"labels.json": SSV2_LABELS, "train.json": "{}"}, "expected a list"),
    ],
    "kinetics400": [
        ({}, "train.csv"),
        ({"train.csv": "a,b\n", "val.csv": ""}, "expected the columns"),
        ({"train.csv": f"{KINETICS_HEAD}\nx,aaaaaaaaaaa,one,2,train\n", "val.csv": ""}, "row 1"),
    ],
}


@pytest.mark.parametrize(
    ("dataset", "files", "message"),
    [(name, files, message) for name, cases in BROKEN.items() for files, message in cases],
)
def test_damaged_files_are_one_sentence(tmp_path, dataset, files, message):
    with pytest.raises(ConfigError) as error:
        READERS[dataset](str(put(tmp_path, files)), 1)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_folder_is_one_sentence(tmp_path):
    for reader in READERS.values():
        with pytest.raises(ConfigError, match="annotations"):
            reader(str(tmp_path / "none"), 1)


def test_a_class_with_a_line_break_shifts_no_other(tmp_path):
    """Its videos cannot be listed, and ``classes.txt`` has a line per class."""
    annotations = read_folder(["a/1.mp4", "b\nb/2.mp4", "c/3.mp4", "d\r/4.mp4"])
    assert annotations.classes == ["a", "c"]
    assert [row.label for row in annotations.rows] == [0, None, 1, None]
