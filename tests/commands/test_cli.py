"""The command line: bad input gets one clear sentence and the right exit code, nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import ROOT, TINY_MODEL

from tats_fast.cli import main


@pytest.fixture
def videos(tmp_path, demo_clips):
    folder = tmp_path / "videos"
    folder.mkdir()
    for clip in sorted(demo_clips.iterdir())[:4]:
        shutil.copy(clip, folder)
    return folder


@pytest.fixture
def config_file(tmp_path, videos):
    tree = {
        "name": "run",
        "output_dir": str(tmp_path / "runs"),
        "device": "cpu",
        "model": TINY_MODEL,
        "masking": {"ratio": 0.75},
        "data": {"train": str(videos), "workers": 0, "stride": 1},
        "train": {"batch_size": 4, "steps": 4, "log_every": 1, "image_every": 0},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def fails(capsys, arguments, code, *parts):
    """The command fails with ``code`` and one line on stderr holding every part."""
    actual = main([str(a) for a in arguments])
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert actual == code
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("masking.ratio=1.2", ["masking.ratio=1.2", "below 1"]),
        ("model.image_size=33", ["model.image_size=33", "for example 32"]),
        ("model.heads=3", ["model.width=32", "model.heads=3"]),
        ("masking.ratio=0.999", ["masking.ratio=0.999", "0 of 64 tokens"]),
        ("train.stepz=3", ["train.stepz=3", "did you mean train.steps?"]),
        ("data.train=no/such/list.txt", ["data.train=no/such/list.txt"]),
        ("data.eval=no/such/folder", ["data.eval=no/such/folder"]),
        ("data.train=null", ["data.train=None", "give a list file or a folder"]),
        ("device=cuda", ["device=cuda: no CUDA GPU"]),
        ("model.attention=flash", ["model.attention=flash: FlashAttention runs on CUDA only"]),
        ("train.resume=no/such/run", ["train.resume=no/such/run"]),
    ],
)
def test_bad_settings_stop_before_any_work(capsys, config_file, tmp_path, override, parts):
    fails(capsys, ["pretrain", "--config", config_file, override], 2, *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("level", "reason"), [("triton", "runs on CUDA only"), ("fastest", "must be one of auto")]
)
def test_kernels_that_cannot_run_stop_before_any_work(
    capsys, config_file, tmp_path, monkeypatch, level, reason
):
    pytest.importorskip("triton")
    monkeypatch.setenv("TATS_KERNELS", level)
    fails(capsys, ["pretrain", "--config", config_file], 2, f"TATS_KERNELS={level}", reason)
    assert not (tmp_path / "runs").exists()
    assert main(["doctor"]) == 0
    assert reason in capsys.readouterr().out


def test_without_pyav_training_stops_before_any_work(capsys, config_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    message = "PyAV, which is not installed; pip install av"
    fails(capsys, ["pretrain", "--config", config_file], 2, message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_what_is_wrong_is_said_once_on_a_node(capsys, config_file, monkeypatch, rank, lines):
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert main(["pretrain", "--config", str(config_file), "train.batch_size=0"]) == 2
    assert capsys.readouterr().err.count("error:") == lines


def test_missing_config_and_root(capsys, config_file, tmp_path):
    fails(capsys, ["pretrain", "--config", "nowhere.yaml"], 2, "nowhere.yaml: No such file")
    listing = tmp_path / "list.txt"
    listing.write_text("a.mp4 0\n")
    arguments = ["pretrain", "--config", config_file, f"data.train={listing}"]
    fails(capsys, [*arguments, f"data.root={tmp_path}/gone"], 2, "data.root", "gone")


def test_world_size_must_divide_the_batch(capsys, config_file, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    fails(capsys, ["pretrain", "--config", config_file], 2, "train.batch_size=4", "world size 3")


def test_unknown_option_and_bare_word(capsys, config_file):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--config", str(config_file), "--bogus"])
    assert stop.value.code == 2
    assert "--bogus" in capsys.readouterr().err
    fails(capsys, ["pretrain", "--config", config_file, "steps"], 2, "key=value")


def bad_file(kind: str, folder: Path) -> Path:
    """One undecodable file among good ones."""
    good = sorted(folder.glob("*.mp4"))[0].read_bytes()
    contents = {
        "zero_bytes": b"",
        "text": b"this is not a video" * 50,
        "truncated": good[: len(good) // 3],  # mp4 keeps its index at the end
    }
    path = folder / f"bad_{kind}.mp4"
    path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize("kind", ["zero_bytes", "text", "truncated"])
@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_past_a_bad_file(capfd, config_file, videos, tmp_path, kind, workers):
    bad = bad_file(kind, videos)
    code = main(["pretrain", "--config", str(config_file), f"data.workers={workers}"])
    assert code == 0
    recorded = (tmp_path / "runs/run/bad_files.txt").read_text().splitlines()
    assert len(recorded) == 1 and recorded[0].startswith(f"{bad}\t")
    rows = [json.loads(x) for x in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped_clips"] >= 1
    assert len(rows) == 4


def test_missing_files_in_a_list_count_as_bad(config_file, videos, tmp_path):
    listing = tmp_path / "list.txt"
    names = [*sorted(videos.glob("*.mp4")), tmp_path / "gone.mp4"]
    listing.write_text("".join(f"{name} 3\n" for name in names))
    assert main(["pretrain", "--config", str(config_file), f"data.train={listing}"]) == 0
    assert "gone.mp4" in (tmp_path / "runs/run/bad_files.txt").read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_files_stop_the_run(capsys, config_file, videos, tmp_path, workers):
    for kind in ("zero_bytes", "text", "truncated"):
        bad_file(kind, videos)
    arguments = ["pretrain", "--config", config_file, "data.max_bad_fraction=0.1"]
    parts = ["of 7 listed videos cannot be decoded", "data.max_bad_fraction=0.1"]
    fails(capsys, [*arguments, f"data.workers={workers}"], 1, *parts)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_decodable_is_one_sentence(capsys, config_file, videos, workers):
    for clip in videos.glob("*.mp4"):
        clip.write_bytes(b"")
    arguments = ["pretrain", "--config", config_file, f"data.workers={workers}"]
    fails(capsys, [*arguments, "data.max_bad_fraction=1"], 1, ".mp4")


def test_second_call_of_a_finished_run_changes_nothing(capfd, config_file, tmp_path):
    arguments = ["pretrain", "--config", str(config_file)]
    assert main(arguments) == 0
    metrics = tmp_path / "runs/run/metrics.jsonl"
    before = metrics.read_bytes()
    assert main(arguments) == 0
    assert metrics.read_bytes() == before
    # More steps continue it.
    assert main([*arguments, "train.steps=6"]) == 0
    assert [json.loads(x)["step"] for x in metrics.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_visualize_and_its_errors(capsys, config_file, videos, tmp_path):
    assert main(["pretrain", "--config", str(config_file)]) == 0
    out = tmp_path / "page"
    run = tmp_path / "runs/run"
    video = sorted(videos.glob("*.mp4"))[0]
    base = ["visualize", "--checkpoint", run, "--out", out]
    assert main([str(a) for a in [*base, "--video", video]]) == 0
    assert (out / "index.html").stat().st_size > 10_000
    capsys.readouterr()
    broken = bad_file("text", videos)
    fails(capsys, [*base, "--video", broken], 1, "bad_text.mp4")
    fails(capsys, ["visualize", "--checkpoint", tmp_path, "--video", video], 2, "--checkpoint=")
    fails(capsys, [*base, "--video", tmp_path / "gone.mp4"], 1, "gone.mp4: missing")


def test_doctor_says_what_runs_and_why_not(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in ("sdpa: yes", "flash2: no, ", "trajectory_attention: ", "gloo: yes", "PyAV: yes"):
        assert part in text


def test_script_entry_runs_from_anywhere(config_file, tmp_path):
    """``python tats_fast/train.py``: its own folder must not shadow other packages."""
    command = [sys.executable, str(ROOT / "tats_fast/train.py"), "--config", str(config_file)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "learning rate" in done.stdout
    assert (tmp_path / "runs/run/checkpoints/step_000004/model.safetensors").exists()
