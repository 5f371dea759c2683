"""``tats-fast make-benchmark motion``: the same bytes twice, labels and truth that fit."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tats_fast.cli import main
from tats_fast.config import ConfigError
from tats_fast.data.labels import class_ids
from tats_fast.data.lists import read_videos
from tats_fast.generated import Scenes
from tats_fast.prepare.motion_benchmark import make_motion_benchmark, read_truth
from tats_fast.prepare.options import MakeBenchmarkOptions

SMALL = {"clips": 2, "test_clips": 1, "frames": 4, "side": 32}


def made(folder: Path, **settings) -> Path:
    make_motion_benchmark(MakeBenchmarkOptions(out=str(folder), **{**SMALL, **settings}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def frames(path: str) -> np.ndarray:
    with av.open(path) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


@pytest.mark.parametrize("lossless", [False, True])
def test_the_same_options_give_the_same_bytes(tmp_path, lossless):
    one = contents(made(tmp_path / "one", lossless=lossless))
    assert one == contents(made(tmp_path / "two", lossless=lossless))
    other = contents(made(tmp_path / "three", lossless=lossless, seed=1))
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if name != "classes.txt")


def test_lists_have_every_class_as_often_and_are_read_by_training(tmp_path):
    folder = made(tmp_path / "made", task="spin")
    classes = (folder / "classes.txt").read_text().split()
    for name, count in (("train", 2), ("test", 1)):
        videos = read_videos(folder / f"{name}.txt")
        assert class_ids(videos, classes).bincount().tolist() == [count] * 5
        assert all(frames(video.path).shape == (4, 32, 32, 3) for video in videos)


def test_videos_are_the_scenes_and_the_truth_is_in_the_list_s_order(tmp_path):
    folder = made(tmp_path / "made", lossless=True, area=0.2)
    for name, seed in (("train", 0), ("test", 1)):
        scenes = Scenes(MakeBenchmarkOptions(out="x", area=0.2), 4, 32, seed)
        batch = scenes.batch(64, 0)
        truth = read_truth(folder / f"{name}.npz")
        videos = read_videos(folder / f"{name}.txt")
        assert [str(folder / path) for path in truth.paths] == [video.path for video in videos]
        for video, moving in zip(videos, truth.moving, strict=True):
            same = (batch.clips.numpy() == frames(video.path)).all((1, 2, 3, 4))
            (row,) = np.flatnonzero(same)
            assert scenes.classes[batch.labels[row]] == video.label
            assert np.array_equal(batch.moving[row].numpy(), moving)


def test_h264_comes_close(tmp_path):
    lossy, lossless = made(tmp_path / "h264"), made(tmp_path / "ffv1", lossless=True)
    for one, other in zip(
        *(read_videos(folder / "test.txt") for folder in (lossy, lossless)), strict=True
    ):
        assert one.label == other.label
        assert np.abs(frames(one.path).astype(int) - frames(other.path)).mean() < 12


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    arguments = ["make-benchmark", "motion", "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("out", [".", "folder"])
def test_an_empty_folder_is_filled_and_not_replaced(tmp_path, monkeypatch, out):
    """One may stand in it, or it may be where a disk is mounted."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder if out == "." else tmp_path)
    inode = folder.stat().st_ino
    (folder / ".writing_folder").mkdir()  # of a call that was killed
    made(Path(out), task="spin")
    assert folder.stat().st_ino == inode
    assert contents(folder) == contents(made(tmp_path / "new", task="spin"))
    names = ["classes.txt", "test", "test.npz", "test.txt", "train", "train.npz", "train.txt"]
    assert sorted(path.name for path in folder.iterdir()) == names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 33}, "side=33: must be even, for example 34"),
        ({"area": 0.9}, "area=0.9: must be at least 0.02"),
        ({"task": "pan", "distractors": 1}, "distractors=1: has no meaning for task=pan"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        made(tmp_path / "made", **settings)
    assert not (tmp_path / "made").exists()


def test_what_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tats_fast.prepare.motion_benchmark.write_video", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        made(tmp_path / "made")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        made(tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_command_line_takes_one_of_the_tasks(tmp_path, capsys):
    arguments = [*("make-benchmark", "motion", "--task", "object", "--clips", "1"), "--lossless"]
    arguments += [*("--test-clips", "1", "--frames", "2", "--side", "16"), "--out"]
    assert main([*arguments, str(tmp_path / "made")]) == 0
    assert len(read_videos(tmp_path / "made" / "train.txt")) == 8
    with pytest.raises(SystemExit):
        main([*arguments, str(tmp_path / "other"), "--task", "fly"])
    assert "invalid choice: 'fly'" in capsys.readouterr().err
    del arguments[1]  # there is only one kind, which need not be named
    assert main([*arguments, str(tmp_path / "again")]) == 0
    assert main([*arguments[:-1], "speech", "--out", str(tmp_path / "none")]) == 2
    assert "benchmark=speech: must be one of motion" in capsys.readouterr().err
