"""What the terminal says at a run's start and end, without training, and when it cannot go on."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import yaml
from project import ROOT, TINY_MODEL

import tats_fast
from tats_fast.cli import main
from tats_fast.config import FinetuneConfig, RunConfig
from tats_fast.config.describe import describe, lines
from tats_fast.config.reading import flat
from tats_fast.config.recipes import recipes
from tats_fast.engine.store import seal
from tats_fast.engine.words import duration

CLIPS = ROOT / "demo" / "clips" / "train"
VIDEO = str(CLIPS / "hmdb51_punch.mp4")


@pytest.fixture
def config_file(tmp_path):
    tree = {
        "name": "run",
        "output_dir": str(tmp_path / "runs"),
        "device": "cpu",
        "model": TINY_MODEL,
        "masking": {"ratio": 0.75},
        "data": {"train": str(CLIPS), "workers": 0, "stride": 1},
        "train": {"batch_size": 4, "steps": 2, "log_every": 1, "image_every": 0},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def run(config_file, tmp_path) -> Path:
    """A run of two steps."""
    assert main(["pretrain", "--config", str(config_file)]) == 0
    return tmp_path / "runs" / "run"


def listing(path: Path, labels: list[str]) -> str:
    videos = sorted(CLIPS.glob("*.mp4"))[: 2 * len(labels)]
    path.write_text("".join(f"{v} {labels[i % len(labels)]}\n" for i, v in enumerate(videos)))
    return str(path)


def error(capsys, *arguments: object) -> tuple[int, str]:
    """Exit code and the one line of a command that cannot do its work."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.splitlines()
    found = [line for line in said if line.startswith("error: ")]
    assert len(found) == 1, said
    return code, found[0]


def test_dry_run_writes_nothing_and_says_what_would_be(capsys, config_file, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert main(["pretrain", "--config", str(config_file), "--dry-run", "train.steps=5000"]) == 0
    said = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    for part in (
        "24 videos, 5000 steps",
        "5000 steps take about",
        "peak memory",
        "GB of disk are free",
    ):
        assert part in said
    assert (
        error(capsys, "pretrain", "--config", config_file, "--dry-run", "data.train=gone")[0] == 2
    )


def test_dry_run_names_files_that_cannot_be_decoded(capsys, config_file, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    (tmp_path / "list.txt").write_text(f"{bad}\n{VIDEO}\n")
    words = ["pretrain", "--config", str(config_file), f"data.train={tmp_path}/list.txt"]
    assert main([*words, "--dry-run", "data.max_bad_fraction=1"]) == 0
    assert f"cannot be decoded: {bad} (" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_dry_run_of_a_run_leaves_it_as_it_was(capsys, config_file, run):
    run_files = {path for path in run.rglob("*") if path.is_file()}
    before = {path: path.read_bytes() for path in run_files if path.name != ".lock"}
    assert main(["pretrain", "--config", str(config_file), "--dry-run", "train.steps=9"]) == 0
    assert ": 7 steps take about" in capsys.readouterr().out
    assert main(["pretrain", "--config", str(config_file), "--dry-run"]) == 0
    assert "already trained to step 2" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert {path for path in run.rglob("*") if path.is_file()} == run_files


def test_a_run_ends_with_its_checkpoint_numbers_and_next_command(capfd, config_file, run):
    said = capfd.readouterr().out.splitlines()
    end = said.index(f"trained to step 2: {run}/checkpoints/step_000002")
    assert "loss " in said[end + 1] and "clips/s" in said[end + 1]
    assert said[end + 2] == "next:"
    assert said[end + 3].split()[:4] == ["tats-fast", "probe", "--checkpoint", str(run)]


def test_a_run_that_goes_on_says_from_where(capfd, config_file, run):
    checkpoint = run / "checkpoints" / "step_000002"
    capfd.readouterr()
    os.utime(checkpoint, (time.time() - 250, time.time() - 250))
    assert main(["pretrain", "--config", str(config_file), "train.steps=3"]) == 0
    line = f"continuing from step 2 of 3, saved 4 minutes ago ({checkpoint})"
    assert line in capfd.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 seconds"), (1, "1 second"), (119, "1 minute"), (7300, "2 hours"), (2e5, "2 days")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("config", [RunConfig, FinetuneConfig])
def test_every_setting_is_described(config):
    settings = describe(None, [], config)
    assert [setting.key for setting in settings] == list(flat(config()))
    assert all(setting.meaning for setting in settings)
    assert {setting.source for setting in settings} <= {None, "model.preset=vit_base"}
    assert max(map(len, lines(settings))) <= 80


def test_settings_say_who_set_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {preset: vit_small, depth: 3}\ntrain: {steps: 5}\n")
    found = {s.key: s for s in describe(path, ["train.steps=7"], RunConfig)}
    assert found["model.width"][1:3] == (384, 768)
    assert found["model.width"].source == "model.preset=vit_small"
    assert found["model.depth"].source == str(path)
    assert (found["train.steps"].value, found["train.steps"].source) == (7, "the command line")
    assert found["seed"].source is None


@pytest.mark.parametrize("name", recipes())
def test_config_prints_every_recipe(capsys, name):
    assert main(["config", name, "seed=5"]) == 0
    said = capsys.readouterr().out
    kind = "finetune" if name.startswith("finetune/") else "pretrain"
    assert said.startswith(f"# {name} as tats-fast {kind} reads it\n")
    assert "\nseed: 5\n" in said


def test_config_of_a_wrong_value_prints_the_error_alone(capsys):
    assert main(["config", "quickstart", "masking.ratio=2"]) == 2
    assert capsys.readouterr().out == ""


def test_config_that_is_not_there(capsys):
    code, line = error(capsys, "config", "quikstart")
    assert code == 2 and line.endswith("no recipe has that name; did you mean quickstart?")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("steps", "train.steps"),
        ("data.batch_size", "train.batch_size"),
        ("train.stepz", "train.steps"),
        ("model.hedas", "model.heads"),
        ("heads", "model.heads or sampler.heads"),
        ("train.lr", "optim.base_lr or optim.min_lr or optim.warmup_lr"),
    ],
)
def test_a_wrong_key_is_answered_with_the_full_name(capsys, config_file, key, meant):
    code, line = error(capsys, "pretrain", "--config", config_file, f"{key}=3")
    assert code == 2 and line.endswith(f"unknown key; did you mean {meant}?")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_output_folder_that_is_a_file_stops_before_the_work(
    capsys, config_file, run, tmp_path, below
):
    file = tmp_path / "file"
    file.write_text("")
    out = file / below if below else file
    train = listing(tmp_path / "train.txt", ["run", "walk"])
    capsys.readouterr()
    for words in (
        ("visualize", "--checkpoint", run, "--video", VIDEO, "--out", out),
        ("probe", "--checkpoint", run, "--train", train, "--eval", train, "--out", out),
    ):
        code, line = error(capsys, *words)
        assert code == 2 and line == f"error: --out={out}: {file} is a file; give a folder"
    code, line = error(capsys, "pretrain", "--config", config_file, f"output_dir={out}")
    assert code == 2 and f"output_dir={out}/run: {file} is a file" in line
    code, line = error(capsys, "finetune", f"output_dir={out}", f"data.train={train}")
    assert code == 2 and f"{file} is a file" in line


def test_an_output_folder_that_is_not_ours(capsys, config_file, monkeypatch, tmp_path):
    monkeypatch.setattr("tats_fast.data.files.os.access", lambda *_: False)
    code, line = error(capsys, "pretrain", "--config", config_file)
    assert code == 2 and "no permission to write into" in line
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_is_full_while_numbers_are_written(capsys, config_file, monkeypatch):
    def full(log, row):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log.folder / "metrics.jsonl"))

    monkeypatch.setattr("tats_fast.engine.logs.RunLog.metrics", full)
    code, line = error(capsys, "pretrain", "--config", config_file)
    assert code == 1 and line.endswith("metrics.jsonl: No space left on device")


def test_a_key_that_a_checkpoint_has_and_we_do_not(capsys, config_file, run):
    checkpoint = run / "checkpoints" / "step_000002"
    (checkpoint / "manifest.json").unlink()
    with (checkpoint / "config.yaml").open("a") as file:
        file.write("surprise: 3\n")
    seal(checkpoint)
    code, line = error(capsys, "pretrain", "--config", config_file, "train.steps=3")
    assert code == 2 and "surprise=3: unknown key" in line and str(checkpoint) in line
    code, line = error(capsys, "visualize", "--checkpoint", run, "--video", VIDEO)
    assert code == 2 and "surprise=3: unknown key" in line and str(checkpoint) in line


def test_the_package_lists_what_it_offers():
    assert {"load_encoder", "load_classifier", "create_model"} <= set(dir(tats_fast))
