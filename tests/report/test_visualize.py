"""From a checkpoint and videos to a page that needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import write_video
from pages import EVALUATIONS, METRICS, NAMES, Parsed, models, noise_clips, save_checkpoint, tiny

from tats_fast.config import ConfigError, load_config, save_config
from tats_fast.data.video import DecodeError, load_clip
from tats_fast.models.restore import load_models
from tats_fast.report import visualize
from tats_fast.report.analysis import analyze
from tats_fast.report.content import explanation
from tats_fast.report.page import Report, render_page
from tats_fast.weights_file import read_state, write_state


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("<i>&lt;'")
    return [write_video(folder / f"clip{i}.mp4", 20 + i) for i in range(2)]


def test_report_of_a_run(tmp_path, videos, caplog):
    run = tmp_path / "runs" / "tiny"
    checkpoint = save_checkpoint(tiny(), run / "checkpoints" / "step_30")
    later = {"step": 40, "loss_recon": 9.0}
    lines = [json.dumps(row) for row in [*METRICS, later]]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 5')
    late = {**EVALUATIONS[-1], "step": 40, "loss_recon_random": 9.0}
    (run / "eval.jsonl").write_text("\n".join(map(json.dumps, [*EVALUATIONS, late])) + "\n")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with caplog.at_level(logging.WARNING, logger="tats_fast"):
        index = visualize.write_report(
            checkpoint, [videos[0], bad, videos[1]], tmp_path / "deep" / "out"
        )
    assert "bad.mp4" in caplog.text

    made = sorted(path.name for path in index.parent.iterdir())
    assert made == ["clip_00.png", "clip_01.png", "index.html", "summary.png"]
    source = index.read_text(encoding="utf-8")
    parsed = Parsed(source)
    assert len(source) < 6e6
    assert parsed.references and all(ref.startswith("data:") for ref in parsed.references)
    assert not re.search(r"url\(|@import|<script|<link|<iframe", source)
    images = [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert len(images) == 2 * (1 + 2 + 3 * len(NAMES))
    assert all(attrs["alt"] for attrs in images)
    assert any(attrs.get("name") == "viewport" for tag, attrs in parsed.tags if tag == "meta")
    for text in (
        "learned sampler",
        "random draw",
        "motion draw",
        "bad.mp4",
        "not a video container",
    ):
        assert text in parsed.text
    for number in ("1.600", "1.200", "-25.0%", "0.999", "0.876", "1.543", "3.210", "step 30"):
        assert number in parsed.text, number
    # Nothing of what the run did after this checkpoint.
    assert "9.000" not in parsed.text and "step 40" not in parsed.text
    for title in ("Training error", "Learning rate", "Speed", "Motion lift", "Until step 10"):
        assert title in parsed.text
    assert all("<i>&lt;'" in attrs["alt"] for attrs in images)
    assert "<i>&lt;'" in parsed.text and "image_size: 32" in parsed.text
    again = visualize.write_report(run, videos, tmp_path / "again")
    picture = (index.parent / "clip_00.png").read_bytes()
    assert picture == (again.parent / "clip_00.png").read_bytes()


def test_what_was_trained_on_another_machine_runs_here(tmp_path):
    config = tiny()
    flash = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="flash4"))
    folder = save_checkpoint(config, tmp_path / "checkpoint")
    save_config(flash, folder / "config.yaml")
    assert load_models(folder, torch.device("cpu"))[0] == config


def test_the_page_says_what_the_sampler_is_taught():
    for credit, aim in (("token", "preferring those of which it is hard"), ("set", "such that it")):
        config = load_config(None, [f"ppo.credit={credit}", "ppo.reward=change_error"])
        assert f"{aim} can be foreseen" in explanation(config) or f"{aim} to" in explanation(config)


def test_report_without_sampler_and_without_a_run(tmp_path, videos):
    checkpoint = save_checkpoint(tiny("random"), tmp_path / "loose")
    index = visualize.write_report(checkpoint, [videos[0].parent], tmp_path / "out")
    parsed = Parsed(index.read_text(encoding="utf-8"))
    assert "random draw" in parsed.text and "motion draw" in parsed.text
    assert "learned sampler" not in parsed.text
    assert "Headline" not in parsed.text and "Curves" not in parsed.text
    assert sum(tag == "img" for tag, _ in parsed.tags) == 2 * (1 + 1 + 3 * 2)


def test_report_shows_the_same_clip_as_the_loader(videos):
    config = tiny()
    clips, failures, untried = visualize._decode(config, [str(videos[0])])
    assert np.array_equal(clips[0][1], load_clip(str(videos[0]), 16, 1, 32))
    assert failures == [] and untried == 0


def test_only_so_many_clips(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(visualize, "MAX_CLIPS", 1)
    checkpoint = save_checkpoint(tiny("random"), tmp_path / "loose")
    index = visualize.write_report(checkpoint, [*videos, *videos], tmp_path / "out")
    assert "3 more videos were given" in Parsed(index.read_text(encoding="utf-8")).text


def test_a_video_that_hangs_or_kills_its_reader_is_left_out(tmp_path, videos, monkeypatch):
    config = tiny("random")
    folder = save_checkpoint(config, tmp_path / "checkpoint")

    def odd(path, *shape):
        if path == str(videos[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        if path.endswith("hangs.mp4"):
            time.sleep(60)
        return load_clip(path, *shape)

    monkeypatch.setattr(visualize, "load_clip", odd)
    monkeypatch.setattr(visualize, "TIMEOUT", 1.0)
    page = visualize.write_report(folder, [*videos, "hangs.mp4"], tmp_path / "out")
    text = page.read_text()
    assert "the process reading it died (SIGKILL)" in text
    assert "took longer than 1 s" in text


def test_no_readable_video_is_one_line(tmp_path):
    checkpoint = save_checkpoint(tiny("random"), tmp_path / "loose")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with pytest.raises(DecodeError) as caught:
        visualize.write_report(checkpoint, [bad, tmp_path / "gone.mp4"], tmp_path / "out")
    message = str(caught.value)
    assert "bad.mp4" in message and "none of the 2 videos" in message and "\n" not in message
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="video: give at least one"):
        visualize.write_report(checkpoint, [], tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("mae"),
        lambda state: state.update(mae=3),
        lambda state: state["mae"].popitem(),
        lambda state: state["mae"].update(other=torch.zeros(1)),
        lambda state: state["mae"].update({"mask_token": torch.zeros(7)}),
        lambda state: state.update(sampler=[]),
    ],
)
def test_weights_that_are_not_the_models_are_one_line(tmp_path, videos, change):
    config = tiny("tats")
    folder = save_checkpoint(config, tmp_path / "runs" / "tiny" / "checkpoints" / "step_7")
    state = read_state(folder / "model.safetensors")
    change(state)
    write_state(state, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="does not hold this model") as raised:
        visualize.write_report(folder, videos[:1], tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_videos_may_be_files_lists_and_folders(tmp_path, videos):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{video} 3\n" for video in videos))
    unnamed = tmp_path / "video"  # no ending: its zero bytes tell it from a list
    unnamed.write_bytes(videos[0].read_bytes())
    paths = visualize.expand_videos([videos[1], listed, videos[0].parent, unnamed, "gone.mp4"])
    both = [str(video) for video in videos]
    assert paths == [str(videos[1]), *both, *both, str(unnamed), "gone.mp4"]


def test_the_page_states_the_scale_it_used():
    config = tiny()
    mae, sampler = models(config)
    (result,) = analyze(config, mae, sampler, noise_clips(1), draws=1)
    for reach, top in ((1.0, "2×"), (7.0, "8×"), (500.0, "16×")):
        heat = np.full_like(result.heat, reach)
        clip = dataclasses.replace(result, heat=heat)
        report = Report(config=config, checkpoint="x", clips=[("c", clip)])
        assert top in Parsed(render_page(report)).text
