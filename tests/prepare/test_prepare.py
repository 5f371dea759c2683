"""``tats-fast prepare`` on miniature copies of the official layouts, with real videos."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from data_files import write_video

from tats_fast.cli import main
from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.bad_files import BadFileRecord
from tats_fast.data.lists import read_videos
from tats_fast.data.video import load_clip
from tats_fast.finetune.classes import label_classes


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> dict[str, Path]:
    """One small video per file ending."""
    folder = tmp_path_factory.mktemp("clip")
    codecs = {".avi": "mpeg4", ".mp4": "libx264", ".webm": "libvpx-vp9"}
    return {
        suffix: write_video(folder / f"clip{suffix}", 12, codec) for suffix, codec in codecs.items()
    }


class Benchmark:
    """Annotation files and videos in a folder, and ``prepare`` on them."""

    def __init__(self, folder: Path, clip: dict[str, Path]) -> None:
        self.annotations, self.videos = folder / "annotations", folder / "my vidéos"
        self.out = folder / "out"
        self.clip = clip
        self.videos.mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        path = self.annotations / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())

    def add(self, *names: str) -> None:
        for name in names:
            path = self.videos / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.clip[path.suffix], path)

    def run(self, dataset: str, *options: str) -> int:
        files = () if dataset == "folder" else ("--annotations", str(self.annotations))
        folders = ("--videos", str(self.videos), "--out", str(self.out))
        return main(["prepare", dataset, *files, *folders, "--workers", "2", *options])

    def listed(self, name: str) -> dict[str, int | str | None]:
        """File name -> label of a list, read as a run would."""
        return {Path(v.path).name: v.label for v in read_videos(self.out / name)}

    def lines(self, name: str) -> list[str]:
        text = (self.out / name).read_text(encoding="utf-8", errors="surrogateescape")
        return text.split("\n")[:-1]

    def manifest(self) -> list[dict]:
        return [json.loads(line) for line in self.lines("manifest.jsonl")]


@pytest.fixture
def bench(tmp_path, clip) -> Benchmark:
    return Benchmark(tmp_path, clip)


def test_ucf101(bench, capsys):
    bench.write("classInd.txt", "1 Archery\r\n2 HandstandPushups\r\n3 YoYo\r\n")
    bench.write(
        "trainlist01.txt",
        "Archery/v_Archery_g08_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n"
        "YoYo/v_YoYo_g08_c01.avi 3\r\nYoYo/v_YoYo_g09_c01.avi 3\r\n",
    )
    bench.write("testlist01.txt", "Archery/v_Archery_g01_c01.avi\r\n")
    bench.add("Archery/v_Archery_g08_c01.avi", "HandStandPushups/v_HandstandPushups_g08_c01.avi")
    bench.add("v_YoYo_g08_c01.avi", "Archery/v_Archery_g01_c01.avi", "Archery/unlisted.avi")
    assert bench.run("ucf101", "--hash") == 0
    assert bench.listed("train.txt") == {
        "v_Archery_g08_c01.avi": 0,
        "v_HandstandPushups_g08_c01.avi": 1,
        "v_YoYo_g08_c01.avi": 2,
    }
    assert bench.listed("val.txt") == {"v_Archery_g01_c01.avi": 0}
    assert bench.lines("classes.txt") == ["Archery", "HandstandPushups", "YoYo"]
    assert bench.lines("missing.txt") == ["YoYo/v_YoYo_g09_c01.avi\ttrain"]
    entry = bench.manifest()[0]
    source = bench.clip[".avi"]
    assert entry == {
        "path": str(bench.videos / "Archery/v_Archery_g08_c01.avi"),
        **{"label": 0, "split": "train", "frames": 12, "fps": 25.0, "width": 64, "height": 64},
        **{"codec": "mpeg4", "duration": 0.48, "bytes": source.stat().st_size},
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    text = capsys.readouterr().out
    assert "note: 3 classes; the official files have 101" in text
    assert "note: 1 videos in the folder are in none of these lists" in text
    assert [line.split() for line in text.splitlines() if line.startswith(("train", "val"))] == [
        ["train", "4", "3", "1", "0", "0"],
        ["val", "1", "1", "0", "0", "0"],
    ]


ODD = "Golf_#6!_(HQ)_50+_&_ü golf.avi"


def test_hmdb51_odd_names(bench):
    folder = "testTrainMulti_7030_splits/"
    for split, flag in (("1", 1), ("2", 2)):
        bench.write(
            f"{folder}golf_test_split{split}.txt", f"{ODD} {flag} \n#122_a, b.avi 2 \nno.avi 0 \n"
        )
        bench.write(f"{folder}wave_test_split{split}.txt", f"w.avi {flag} \n")
    bench.add(f"golf/{ODD}", "golf/#122_a, b.avi", "w.avi")
    assert bench.run("hmdb51") == 0
    assert bench.listed("train.txt") == {ODD: 0, "w.avi": 1}
    assert bench.listed("val.txt") == {"#122_a, b.avi": 0}
    assert bench.run("hmdb51", "--split", "2") == 0
    assert bench.listed("val.txt") == {ODD: 0, "#122_a, b.avi": 0, "w.avi": 1}
    assert load_clip(read_videos(bench.out / "val.txt")[0].path, 4, 1, 32).shape == (4, 32, 32, 3)


@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
def test_ssv2(bench, suffix):
    bench.write("labels.json", '{"Pushing something": "1", "Holding something": "0"}')
    rows = [
        {"id": "1", "template": "Holding [something]"},
        {"id": "12", "template": "Pushing [something]"},
    ]
    bench.write("train.json", json.dumps(rows))
    bench.write("validation.json", json.dumps([{"id": 3, "template": "Pushing [something]"}]))
    bench.write("test.json", '[{"id": "4"}, {"id": "5"}]')
    bench.add(*(f"{stem}{suffix}" for stem in (1, 12, 3, 4)))
    assert bench.run("ssv2") == 0
    assert bench.listed("train.txt") == {f"1{suffix}": 0, f"12{suffix}": 1}
    assert bench.listed("val.txt") == {f"3{suffix}": 1}
    assert bench.listed("test_unlabelled.txt") == {f"4{suffix}": None}
    assert not (bench.out / "test.txt").exists()
    assert bench.lines("missing.txt") == ["5\ttest"]


def test_kinetics_with_unreadable_and_missing(bench, capsys):
    head = "label,youtube_id,time_start,time_end,split\n"
    bench.write(
        "train.csv",
        f"{head}riding a bike,-a_bcdefghij,12,22,train\nabseiling,gone4567890,0,10,train\n"
        "abseiling,broken67890,0,10,train\nabseiling,onlyid67890,0,10,train\n",
    )
    bench.write("validate.csv", f"{head}abseiling,xxxxxxxxxx_,100,110,validate\n")
    bench.write("test.csv", f"{head}abseiling,ttttttttttt,1,11,test\n")
    bench.add("train/riding_a_bike/-a_bcdefghij_000012_000022.mp4", "train/onlyid67890.mp4")
    bench.add("val/abseiling/xxxxxxxxxx__100_110.mp4", "ttttttttttt_000001_000011.mp4")
    broken = bench.videos / "broken67890_000000_000010.mp4"
    broken.write_bytes(b"<html>not found</html>")
    assert bench.run("kinetics400") == 0
    assert bench.listed("train.txt") == {
        "-a_bcdefghij_000012_000022.mp4": 1,
        "onlyid67890.mp4": 0,
    }
    assert bench.listed("val.txt") == {"xxxxxxxxxx__100_110.mp4": 0}
    assert bench.listed("test.txt") == {"ttttttttttt_000001_000011.mp4": 0}
    assert bench.lines("missing.txt") == ["gone4567890_000000_000010\ttrain"]
    assert bench.lines("unreadable.txt") == [f"{broken}\tnot a video container"]
    assert "train         4        2        1           1         0" in capsys.readouterr().out
    # What it found unreadable can be handed back as a quarantine list, and so can a run's record.
    shutil.copy(bench.out / "unreadable.txt", bench.out / "bad.txt")
    with open(bench.out / "bad.txt", "a") as file:
        file.write("train/onlyid67890.mp4\tby hand\n")
    assert bench.run("kinetics400", "--quarantine", str(bench.out / "bad.txt")) == 0
    assert bench.listed("train.txt") == {"-a_bcdefghij_000012_000022.mp4": 1}
    assert bench.lines("unreadable.txt") == []
    assert "train         4        1        1           0         2" in capsys.readouterr().out


def test_folder_with_names_that_are_not_utf8(bench):
    bench.add("train/jümp high/a b.mp4", "train/sit/c\td.mp4", "val/sit/ e.mp4")
    raw = os.fsencode(bench.videos / "train/sit") + b"/\xff.mp4"
    shutil.copy(bench.clip[".mp4"], raw)
    assert bench.run("folder") == 0
    assert bench.listed("train.txt") == {"a b.mp4": 0, "c\td.mp4": 1, os.fsdecode(b"\xff.mp4"): 1}
    assert bench.listed("val.txt") == {" e.mp4": 1}
    assert all(os.path.exists(video.path) for video in read_videos(bench.out / "train.txt"))
    assert {entry["path"] for entry in bench.manifest()} >= {os.fsdecode(raw)}


@pytest.mark.parametrize("folders", [range(12), range(1, 4), ["01", "02", "10"]])
def test_folders_called_by_numbers_keep_their_names(bench, folders):
    """Ids in the order of names, 0 1 10 11 2, were taken for the names 0 1 2 3 4."""
    bench.add(*(f"{split}/{name}/a.mp4" for name in folders for split in ("train", "val")))
    assert bench.run("folder") == 0
    lists = {key: str(bench.out / f"{name}.txt") for key, name in (("train",) * 2, ("eval", "val"))}
    videos = [read_videos(path) for path in lists.values()]
    *ids, names = label_classes(LabelledDataConfig(**lists), *videos)
    for part, numbers in zip(videos, ids, strict=True):
        assert [names[n] for n in numbers] == [Path(video.path).parent.name for video in part]
    labels = {entry["path"]: entry["label"] for entry in bench.manifest()}
    assert all(labels[video.path] == video.label for part in videos for video in part)


def test_folders_of_one_number_are_refused(bench, capsys):
    bench.add("1/a.mp4", "01/a.mp4", "2/a.mp4")
    assert bench.run("folder") == 2
    error = capsys.readouterr().err
    assert "the classes '01', '1' share a number; rename all but one of each" in error
    assert error.count("\n") == 1 and not (bench.out / "train.txt").exists()


def test_lists_of_an_earlier_call_are_set_aside(bench, capsys):
    """Their ids are those of other classes."""
    bench.add("train/run/1.mp4", "val/sit/2.mp4")
    assert bench.run("folder") == 0
    before = bench.lines("val.txt")
    capsys.readouterr()
    shutil.rmtree(bench.videos / "val")
    (bench.out / "mine.txt").write_text("mine")
    assert bench.run("folder") == 0
    assert not (bench.out / "val.txt").exists() and bench.lines("val.txt.old") == before
    assert "set aside from an earlier call: val.txt.old\n" in capsys.readouterr().out
    bench.add("train/3.mp4")  # no class
    shutil.rmtree(bench.videos / "train/run")
    assert bench.run("folder") == 0
    assert "set aside from an earlier call: classes.txt.old\n" in capsys.readouterr().out
    (bench.videos / "train/3.mp4").write_bytes(b"x")
    assert bench.run("folder") == 1  # writes no list, and so leaves all alone
    assert (bench.out / "train.txt").exists() and (bench.out / "mine.txt").exists()
    assert "set aside" not in capsys.readouterr().out


def test_the_record_of_a_run_in_another_folder_is_a_quarantine(bench, tmp_path, monkeypatch):
    """It named a relative data.root's videos relatively, and nothing was left out."""
    bench.add("run/1.mp4", "sit/2.mp4")
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "runs/run/bad_files.txt"
    relative = os.path.relpath(bench.videos / "run/1.mp4")
    BadFileRecord(record, 2, 1.0).record([(relative, "decoding error")])
    monkeypatch.chdir("/")
    assert bench.run("folder", "--quarantine", str(record)) == 0
    assert list(bench.listed("train.txt")) == ["2.mp4"]
    record.write_text(f"{relative}\tdecoding error\n")  # as it was written
    monkeypatch.chdir(tmp_path)
    assert bench.run("folder", "--quarantine", str(record)) == 0
    assert list(bench.listed("train.txt")) == ["2.mp4"]


def test_name_with_a_line_end_is_reported(bench, capsys):
    bench.add("a.mp4", "b\nc.mp4")
    assert bench.run("folder") == 0
    assert bench.listed("train.txt") == {"a.mp4": None}
    assert "a name with a line break cannot be listed" in capsys.readouterr().out


def test_copies_are_listed_and_a_broken_source_is_left_out(bench):
    bench.add("run/ü 1.avi", "run/2.mp4", "sit/3.webm")
    (bench.videos / "sit/4.mp4").write_bytes(b"x")
    assert bench.run("folder", "--transcode", "--short-side", "32", "--gop", "4") == 0
    assert bench.lines("train.txt") == [
        "videos/run/2.mp4\t0",
        "videos/run/ü 1.mp4\t0",
        "videos/sit/3.mp4\t1",
    ]
    entry = bench.manifest()[1]
    assert (entry["codec"], entry["width"], entry["frames"]) == ("h264", 32, 12)
    assert entry["source"] == str(bench.videos / "run/ü 1.avi")
    assert bench.lines("unreadable.txt") == [f"{bench.videos / 'sit/4.mp4'}\tnot a video container"]
    copies = {p: p.stat().st_mtime_ns for p in (bench.out / "videos").rglob("*.mp4")}
    gone = bench.out / "videos/sit/3.mp4"
    gone.unlink()
    assert bench.run("folder", "--transcode", "--short-side", "32", "--gop", "4") == 0
    after = {p: p.stat().st_mtime_ns for p in (bench.out / "videos").rglob("*.mp4")}
    assert [p for p in copies if after[p] != copies[p]] == [gone]
    moved = bench.out.rename(bench.out.with_name("moved"))
    assert all(os.path.exists(video.path) for video in read_videos(moved / "train.txt"))


def test_output_inside_the_videos_folder_is_not_read_again(bench):
    bench.add("run/1.mp4", "sit/2.mp4")
    bench.out = bench.videos / "out"
    for _ in range(2):
        assert bench.run("folder", "--transcode", "h264") == 0
        assert bench.lines("train.txt") == ["videos/run/1.mp4\t0", "videos/sit/2.mp4\t1"]


def test_a_folder_called_videos_is_read_unless_it_holds_our_copies(bench):
    bench.out = bench.videos
    bench.add("videos/run/a.mp4", "videos/walk/b.mp4")
    assert bench.run("folder") == 0
    assert len(bench.lines("train.txt")) == 2


def test_nothing_usable_is_exit_1(bench, capsys):
    (bench.videos / "a.mp4").write_bytes(b"x")
    assert bench.run("folder") == 1
    assert not (bench.out / "train.txt").exists()
    assert "no usable video" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ucf101",), "--annotations: ucf101 needs"),
        (("folder", "--annotations", "."), "--annotations: 'folder' reads none"),
        (("folder", "--split", "2"), "--split: folder has no numbered splits"),
        (("ucf101", "--annotations", ".", "--split", "4"), "--split=4"),
        (("ucf101", "--annotations", "."), "has no classInd.txt"),
        (("folder", "--gop", "4"), "--gop: only with --transcode"),
        (("folder", "--transcode", "--gop", "0"), "--gop=0"),
        (("folder", "--transcode", "--short-side", "225"), "--short-side=225"),
        (("folder", "--transcode", "--quality", "99"), "--quality=99"),
        (("folder", "--workers", "0"), "--workers=0"),
        (("folder", "--quarantine", "none.txt"), "--quarantine=none.txt"),
        (("folder", "--videos", "none"), "--videos=none: no such folder"),
    ],
)
def test_wrong_use_is_one_sentence(bench, monkeypatch, capsys, arguments, message):
    bench.add("a.mp4")
    monkeypatch.chdir(bench.videos)
    folders = [] if "--videos" in arguments else ["--videos", "."]
    assert main(["prepare", *arguments, *folders, "--out", str(bench.out)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
