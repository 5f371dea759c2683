"""Frames by time, ``fps``, in fine-tuning, evaluation, probes and features, beside ``stride``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from classifiers_exchanged import make_classifier, write_fine_tuned
from data_files import numbers, write_video
from models_exchanged import model_tree, write_run
from project import TINY_MODEL

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError, ModelConfig, load_finetune_config
from tats_fast.config.finetune import LabelledDataConfig
from tats_fast.data.cutter import ClipCutter, Task
from tats_fast.data.lists import Video
from tats_fast.data.opening import DecodeError
from tats_fast.data.order import ClipKey
from tats_fast.data.timed import frames_by_time
from tats_fast.data.windows import timed_windows, video_windows
from tats_fast.engine.distributed import World
from tats_fast.finetune.trainer import Finetuner
from tats_fast.interchange import read_weights
from tats_fast.interchange.huggingface import export_hugging_face
from tats_fast.recognition.decoding import decoded_views
from tats_fast.recognition.extract import ExtractSettings
from tats_fast.recognition.options import FeatureSettings, Views

MODEL = ModelConfig(**TINY_MODEL)
# Of 30, 25 and 30000/1001 frames per second, all constant.
BUNDLED = ("hmdb51_cartwheel.mp4", "surveillance_nofi006.mp4", "surveillance_nofi020.mp4")
VARIABLE = [0, 40, 80, 1000, 1040, 1080, 1120, 2000, 2500, 3000]  # ms


def rate(path: Path) -> float:
    with av.open(str(path)) as file:
        return float(file.streams.video[0].average_rate)


@pytest.fixture(params=BUNDLED)
def clip(request, demo_clips) -> Path:
    return demo_clips / request.param


def test_every_moment_of_a_video():
    assert frames_by_time([0, 1, 2, 3, 10], 0.5) == [0, 2, 3, 3, 3, 4, 4]
    assert frames_by_time([5.0], 8) == [0]


@pytest.mark.parametrize("of", [24.0, 25.0, 30000 / 1001, 60.0])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_at_a_constant_rate_every_stride_th(of, stride):
    for total in (1, 2, 3, 20, 21, 100):
        for digits in (3, 12):  # containers that count milliseconds, and others
            times = [round(4 + number / of, digits) for number in range(total)]
            assert frames_by_time(times, of / stride) == list(range(0, total, stride))


@pytest.mark.parametrize("stride", [1, 4])
def test_views_are_those_of_the_stride(clip, stride):
    by_time = Views(fps=rate(clip) / stride, clips=3, crops=2)
    by_number = Views(stride=stride, clips=3, crops=2)
    found = decoded_views(str(clip), by_time, MODEL)
    assert np.array_equal(found, decoded_views(str(clip), by_number, MODEL))


@pytest.mark.parametrize("stride, hop", [(1, 8), (4, 2)])
def test_windows_are_those_of_the_stride(clip, stride, hop):
    expected = list(video_windows(str(clip), 8, stride, hop * stride, 32))
    found = list(timed_windows(str(clip), 8, rate(clip) / stride, hop, 32))
    assert len(found) > 1 and [w.start for w in found] == [w.start for w in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.clip, theirs.clip)


def test_windows_of_a_variable_rate(tmp_path):
    path = str(write_video(tmp_path / "a.mkv", len(VARIABLE), pts=VARIABLE))
    moments = frames_by_time([t / 1000 for t in VARIABLE], 2.0)
    assert moments == [0, 2, 3, 6, 7, 8, 9]
    windows = list(timed_windows(path, 3, 2.0, 3, 32))
    assert [numbers(window.clip) for window in windows] == [[0, 2, 3], [6, 7, 8], [7, 8, 9]]
    assert [window.start for window in windows] == [0, 6, 7]
    (short,) = timed_windows(path, 9, 2.0, 9, 32)
    assert numbers(short.clip) == [*moments, 9, 9]
    # A rate above the file's shows frames for as long as they are shown.
    (first, *_) = timed_windows(path, 4, 50.0, 4, 32)
    assert numbers(first.clip) == [0, 0, 1, 1]


def test_a_file_without_an_end_or_without_frames(tmp_path):
    whole = write_video(tmp_path / "a.avi", 60, "mpeg4", options={"g": "1"})
    cut = tmp_path / "b.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    seen = [numbers(window.clip) for window in timed_windows(str(cut), 4, 5.0, 4, 32)]
    assert seen[0] == [0, 5, 10, 15] and 20 <= max(map(max, seen)) < 55
    (tmp_path / "c.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match="not a video container"):
        list(timed_windows(str(tmp_path / "c.mp4"), 4, 5.0, 4, 32))


def test_training_clips_are_those_of_the_stride(clip):
    cut = {}
    for name, sampling in (("fps", {"fps": rate(clip) / 3}), ("stride", {"stride": 3})):
        config = LabelledDataConfig(workers=0, **sampling)
        cutter = ClipCutter([Video(str(clip), "a")], config, 8, 32, seed=1, rows=4)
        assert [cutter(Task(ClipKey(epoch, 0), epoch)) for epoch in range(4)] == [None] * 4
        cut[name] = cutter.rows.copy()
    assert np.array_equal(cut["fps"], cut["stride"])
    assert len({row.tobytes() for row in cut["fps"]}) == 4


def test_one_of_stride_and_fps():
    assert (LabelledDataConfig().stride, Views().stride) == (4, 4)
    assert (LabelledDataConfig(fps=8.0).stride, ExtractSettings(fps=8.0).stride) == (None, None)
    words = r"data\.fps=8\.0: frames are taken by time or every data\.stride=4; set data\.stride"
    with pytest.raises(ConfigError, match=words):
        load_finetune_config("ucf101_vit_base", ["data.fps=8"])
    config = load_finetune_config("ucf101_vit_base", ["data.fps=8", "data.stride=null"])
    assert (config.data.stride, config.data.fps) == (None, 8.0)
    words = r"^fps=8\.0: frames are taken by time or every stride=0; leave one of them out$"
    with pytest.raises(ConfigError, match=words):
        FeatureSettings(stride=0, fps=8.0)
    with pytest.raises(ConfigError, match=r"fps=0\.0: must be above 0"):
        Views(fps=0.0)


@pytest.fixture
def lists(demo_clips, tmp_path) -> dict[str, Path]:
    """Bundled clips of two classes, and one file of each class at another rate."""
    found = {}
    for name in ("train", "eval"):
        fast = write_video(tmp_path / f"{name}_fast.mp4", 150, rate=60)
        slow = write_video(tmp_path / f"{name}_slow.mkv", len(VARIABLE), pts=VARIABLE)
        lines = [f"{demo_clips / clip} {'ab'[n % 2]}" for n, clip in enumerate(BUNDLED)]
        lines += [f"{demo_clips / 'hmdb51_punch.mp4'} b", f"{fast} a", f"{slow} b"]
        found[name] = tmp_path / f"{name}.txt"
        found[name].write_text("\n".join(lines) + "\n")
    return found


def test_finetune_and_evaluate_by_time(lists, tmp_path, capsys):
    settings = {
        **{"output_dir": tmp_path, "name": "run", "device": "cpu", "data.fps": 6},
        **{"data.train": lists["train"], "data.eval": lists["eval"], "data.clips": 2},
        **{"model.preset": "vit_tiny", "model.num_frames": 4, "model.image_size": 32},
        **{"train.batch_size": 4, "train.steps": 1, "data.workers": 0},
        **{"optim.base_lr": 0.01, "train.precision": "fp32"},
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    run = tmp_path / "run"
    Finetuner(load_finetune_config(None, overrides), World(0, 1, torch.device("cpu"))).run()
    assert "6 frames per second" in capsys.readouterr().out
    record = json.loads((run / "evaluation/evaluation.json").read_text())
    assert record["views"] == {"stride": None, "fps": 6.0, "clips": 2, "crops": 3}

    arguments = ["evaluate", "--checkpoint", str(run), "--device", "cpu", "--workers", "1"]
    assert main(arguments) == 0
    assert "2 clips x 3 crops, 6 frames per second; 0 unreadable" in capsys.readouterr().out
    again = json.loads((run / "evaluation/evaluation.json").read_text())
    assert again["views"] == record["views"] and again["accuracy"] == record["accuracy"]
    assert main([*arguments, "--stride", "2", "--out", str(tmp_path / "by_stride")]) == 0
    views = json.loads((tmp_path / "by_stride/evaluation.json").read_text())["views"]
    assert views == {"stride": 2, "fps": None, "clips": 2, "crops": 3}
    assert main([*arguments, "--stride", "2", "--fps", "3"]) == 2
    error = capsys.readouterr().err
    assert "--fps=3.0: frames are taken by time or every --stride=2" in error
    assert error.count("\n") == 1


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """A pretrained run that took 5 frames per second."""
    torch.manual_seed(0)
    run = write_run(tmp_path / "pretrained", tats_fast.create_model("vit_tiny", **TINY_MODEL))
    for file in (tmp_path / "pretrained").rglob("config.yaml"):
        file.write_text(
            file.read_text().replace("stride: 4\n  fps: null\n", "stride: null\n  fps: 5.0\n")
        )
    assert read_weights(tmp_path / "pretrained").fps == 5.0, run
    return tmp_path / "pretrained"


def test_probe_and_features_follow_the_training(lists, pretrained, tmp_path):
    probe = ["probe", "--checkpoint", pretrained, "--train", lists["train"], "--kinds", "knn"]
    probe += ["--eval", lists["eval"], "--device", "cpu", "--workers", "1", "--out"]
    extract = ["extract-features", "--checkpoint", pretrained, "--videos", lists["eval"]]
    extract += ["--device", "cpu", "--workers", "1", "--out"]
    for extra, stride, fps in (([], None, 5.0), (["--stride", "3"], 3, None)):
        out = tmp_path / f"out{stride}"
        assert main([*map(str, probe), str(out / "p"), *extra]) == 0
        options = json.loads((out / "p/probe.json").read_text())["options"]
        assert (options["stride"], options["fps"]) == (stride, fps)
        assert main([*map(str, extract), str(out / "f"), *extra]) == 0
        settings = json.loads((out / "f/settings.json").read_text())
        assert (settings["stride"], settings["fps"]) == (stride, fps)
        lines = [json.loads(x) for x in (out / "f/index.jsonl").read_text().splitlines()]
        assert len(lines) == 6
    # 150 frames at 60 per second, every 12th, windows of 8: 13 sampled frames.
    (fast,) = [
        json.loads(x)
        for x in (tmp_path / "outNone/f/index.jsonl").read_text().splitlines()
        if "eval_fast" in x
    ]
    frames = TINY_MODEL["num_frames"]
    starts = list(range(0, 13 - frames + 1, frames))
    if starts[-1] + frames < 13:
        starts.append(13 - frames)
    assert fast["starts"] == [12 * start for start in starts]


def test_what_was_trained_by_time_is_remembered(tmp_path, capsys):
    data = LabelledDataConfig(fps=7.5)
    run = write_fine_tuned(tmp_path / "run", make_classifier(model_tree("plain")), data=data)
    out = export_hugging_face(read_weights(run), tmp_path / "exported")
    card = (out / "README.md").read_text()
    assert "7.5 per second" in card and "| data.fps | 7.5 |" in card and "data.stride" not in card
    imported = tmp_path / "imported.safetensors"
    assert main(["import", "--from", str(out), "--out", str(imported)]) == 0
    for path in (run, out, imported):
        assert (read_weights(path).stride, read_weights(path).fps) == (None, 7.5)
        loaded = tats_fast.load_classifier(path).encoder, tats_fast.load_encoder(path)
        assert [x.sampling for x in loaded] == [{"stride": None, "fps": 7.5}] * 2
        assert Views(**loaded[0].sampling).sampling == "7.5 frames per second"
    config = out / "config.json"
    config.write_text(re.sub(r'"fps": 7.5', '"fps": -1', config.read_text()))
    with pytest.raises(ConfigError, match="frame_sampling must be a stride or an fps"):
        tats_fast.load_classifier(out)
    capsys.readouterr()
