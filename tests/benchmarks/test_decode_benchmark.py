"""The benchmark of clip loading: its gates, its ratios, its clock, and one small run of it all."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripts import run_script

pytest.importorskip("av")
import decode
from parts.decode import backends, data_wait, report

from tats_fast.data.lists import Video
from tats_fast.data.video import DecodeError, decode_window, open_video
from tats_fast.data.workers.pool import Workers


@pytest.fixture
def two_cases():
    cases = [decode.Case("raw", 4), decode.Case("vp9-256", 4)]
    return cases, {case.source: [] for case in cases}


def fake_contender(monkeypatch, clips, seconds):
    """Let contenders give ``clips[backend]`` and take ``seconds[backend]`` per clip."""
    log = []

    class Fake:
        def __init__(self, backend, videos, stride, workers):
            self.backend = backend

        def first_clips(self):
            batch = clips[self.backend]
            if isinstance(batch, Exception):
                raise batch
            return batch

        def decode(self, count):
            log.append((self.backend, count))
            took = seconds[self.backend].pop(0)
            if isinstance(took, Exception):
                raise took
            return decode.Taken(count, count * took, 2 * count * took)

    monkeypatch.setattr(decode, "Contender", Fake)
    monkeypatch.setattr(decode, "unavailable", lambda name: None if name in clips else "absent")
    return log


def test_quick_run_end_to_end(tmp_path):
    file, chart = tmp_path / "record.json", tmp_path / "chart.png"
    outputs = ["--json", file, "--plot", chart]
    videos = "demo/clips/train"
    done = run_script("decode.py", "--quick", "--markdown", "--videos", videos, *outputs)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert {"command", "hardware", "versions", "commit", "config"} <= set(record)
    assert record["command"][0] == "benchmarks/decode.py" and record["config"]["repeats"] == 2
    assert list(record["decoding"]) == ["raw, stride 4", "mjpeg-64, stride 4"]
    raw, copies = (case["pyav"] for case in record["decoding"].values())
    assert raw["x_raw"] == raw["x_raw_cpu"] == 1 and raw["difference"] == 0
    for row in (raw, copies):
        assert 0 < row["clips_per_s"]["p20"] <= row["clips_per_s"]["p80"]
        assert row["cpu_ms_per_clip"]["p50"] > 0
    assert all("mjpeg" in text for text in record["sources"]["mjpeg-64"]["files"])
    if "dali" not in record["unavailable"]:
        cases = record["decoding"].values()
        refused, native = (case["dali"] for case in cases)
        assert "windows went to PyAV" in refused["refused"]
        assert 0 < native["difference"] < 1
    assert "| raw, stride 4 | pyav |" in done.stdout
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_training_runs_and_its_time_is_split(tmp_path, demo_clips):
    cpu, videos = torch.device("cpu"), sorted(map(str, demo_clips.glob("*.mp4")))[:2]
    sources = decode.make_sources(videos, ["raw", "mjpeg-64"], tmp_path, 2)
    plans = data_wait.scenarios(list(sources), [("mjpeg-64", "pyav")], cpu)
    names = ["raw, pyav", "mjpeg-64, pyav", "mjpeg-64, pyav, repeats 4"]
    assert [plan.name for plan in plans] == names
    with_dali = data_wait.scenarios(
        ["raw", "h264-256", "mjpeg-256"], [("mjpeg-256", "dali"), ("mjpeg-256", "dali-gpu")], cpu
    )
    assert [s.name for s in with_dali[3:]] == ["mjpeg-256, pyav", "mjpeg-256, dali"]
    on_gpu = data_wait.scenarios(
        ["raw", "h264-256"], [("h264-256", "dali-gpu")], torch.device("cuda")
    )
    assert [s.name for s in on_gpu[3:]] == ["h264-256, dali"]
    rows = data_wait.train(plans, sources, tmp_path, cpu, workers=1, quick=True)
    assert list(rows) == names
    for row in rows.values():
        assert row["lines"] == 2 and 0 <= row["data_wait_frac"]["p50"] <= 1
        assert row["wait_ms_per_clip"] >= 0 and row["step_ms_per_clip"] > 0
    repeated = (tmp_path / "run_0_2" / "config.yaml").read_text()
    assert "repeats: 4" in repeated and "stride: 4" in repeated
    text = report.training_results({"training": rows}, markdown=True)
    assert text.count("\n| ") == 4 and "fell back" not in text
    rows["raw, dali"] = {**row, "host_decoded_frac": 1.0}
    text = report.training_results({"training": rows}, markdown=False)
    assert "raw, dali: 100% of the windows fell back" in text


def test_only_backends_that_give_pyavs_clips_are_admitted(monkeypatch, two_cases):
    right = torch.full((8, 2, 4, 4, 3), 100, dtype=torch.uint8)
    one_clip_off = right.clone()
    one_clip_off[3] += 1
    fake_contender(
        monkeypatch,
        {
            "pyav": right,
            "dali": one_clip_off,
            "dali-gpu": decode.Refused("not native: 8 of 8 windows went to PyAV"),
            "whole frame": right + 10,
            "decord": right + 13,
            "torchcodec": DecodeError("/some/where/a.mp4", "broken"),
        },
        {},
    )
    cases, sources = two_cases
    rows, entries = decode.admit(cases, sources, 2)
    assert [(case.name, backend) for case, backend in rows] == [
        (case.name, backend) for case in cases for backend in ("pyav", "decord")
    ]
    copies = entries["vp9-256, stride 4"]
    assert copies["pyav"] == {"difference": 0} and copies["decord"] == {"difference": 3}
    assert copies["dali"]["refused"] == "other clips than PyAV's: 1.0 grey levels apart, 1 allowed"
    assert copies["dali-gpu"]["refused"] == "not native: 8 of 8 windows went to PyAV"
    assert copies["torchcodec"]["refused"] == "a.mp4: broken"


def test_rounds_are_interleaved_and_ratios_taken_within_them(monkeypatch, two_cases):
    clips = torch.zeros(8, 2, 4, 4, 3, dtype=torch.uint8)
    # Two cases per round. The third round was disturbed; the warm-up round must not count.
    seconds = {
        "pyav": [9.0, 9.0, 4.0, 2.0, 40.0, 20.0, 4.0, 2.0],
        "dali": [9.0, 9.0, 8.0, 1.0, NotImplementedError, 10.0, 8.0, 1.0],
    }
    seconds["dali"][4] = decode.Refused("not native: 1 of 8 windows went to PyAV")
    log = fake_contender(monkeypatch, {"pyav": clips, "dali": clips}, seconds)
    seconds["dali"].pop(6)  # the refused row takes part no longer
    cases, sources = two_cases
    rows, entries = decode.admit(cases, sources, 2)
    decode.measure(rows, 24, 3, entries)
    assert log[:6] == [*[("pyav", 8), ("dali", 8)] * 2, ("pyav", 24), ("dali", 24)]
    raw, copies = entries.values()
    assert raw["pyav"]["clips_per_s"] == pytest.approx({"p20": 0.115, "p50": 0.25, "p80": 0.25})
    assert raw["pyav"]["x_raw"] == 1
    assert copies["pyav"]["x_raw"] == copies["pyav"]["x_raw_cpu"] == 2
    assert copies["dali"]["x_raw"] == 4
    assert copies["dali"]["cpu_ms_per_clip"]["p50"] == 2e3
    assert "1 of 8" in raw["dali"]["refused"] and "clips_per_s" not in raw["dali"]


def test_cpu_time_of_ended_workers_is_counted():
    began = backends._cpu_seconds()
    with Workers(burn, 1) as workers:
        workers.submit(0.2)
        workers.collect()
    assert backends._cpu_seconds() - began >= 0.2


def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.mark.parametrize("late", [0, 40])
def test_other_libraries_are_asked_for_the_same_windows(monkeypatch, demo_clips, late):
    """With PyAV behind decord's interface; ``late`` frames later must not pass the gate."""

    class Reader:
        def __init__(self, path, width, height, num_threads):
            assert width == height == backends.SIZE and num_threads == 1
            with open_video(path) as (container, stream):
                count = sum(1 for _ in container.decode(stream))
            self.all = decode_window(path, count, 1, width, 0, lambda w, h: (0, 0, w, h))

        def __len__(self):
            return len(self.all)

        def get_batch(self, frames):
            chosen = np.minimum(np.array(frames) + late, len(self.all) - 1)
            return SimpleNamespace(asnumpy=lambda: self.all[chosen])

    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=Reader))
    videos = [Video(str(path)) for path in sorted(demo_clips.glob("*.mp4"))[:2]]
    clips = [
        backends.Contender(name, videos, 2, 1).first_clips() for name in ("decord", "whole frame")
    ]
    apart = backends.difference(*clips)
    assert apart > backends.OUTSIDE_LIMIT if late else apart == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "/no/such/folder"], "--videos /no/such/folder: no such folder"),
        (["--videos", "{empty}"], "no video in this folder"),
        (["--videos", "{broken}"], "a.mp4: not a video container; leave this video out"),
        (["--plot", "chart.pdf"], "must end in .png"),
        (["--json", "/no/such/folder/x.json"], "cannot be written"),
        (["--workers", "0"], "--workers: 0 must be at least 1"),
    ],
)
def test_bad_arguments_get_one_line(capsys, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_bytes(b"no video at all" * 100)
    places = {name: str(tmp_path / name) for name in ("empty", "broken")}
    threads = torch.get_num_threads()
    try:
        code = decode.main(["--quick", *(text.format(**places) for text in arguments)])
    except SystemExit as stop:
        code = stop.code
    finally:
        torch.set_num_threads(threads)
    err = capsys.readouterr().err
    assert code == 2
    assert message in err and err.count("\n") == 1
