"""``tats-fast extract-features``: the command, its interruption, and its page of the docs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_files import write_video
from models_exchanged import randomize, write_run
from project import ROOT, TINY_MODEL
from records import read_lines

from tats_fast.cli import main
from tats_fast.config import ModelConfig
from tats_fast.data.lists import Video
from tats_fast.models import MaskedAutoencoder


@pytest.fixture
def videos(tmp_path) -> list[Video]:
    """40, 5 and 16 frames: three windows, one of a video that is too short, exactly one."""
    folder = tmp_path / "clips"
    folder.mkdir()
    return [Video(str(write_video(folder / f"{n}.mp4", n)), n) for n in (40, 5, 16)]


def index_of(out: Path) -> list[dict]:
    return read_lines(out / "index.jsonl")


@pytest.fixture
def run(tmp_path) -> Path:
    mae = randomize(MaskedAutoencoder(ModelConfig(**TINY_MODEL)), std=0.1)
    write_run(tmp_path / "runs" / "my_run", mae)
    return tmp_path / "runs" / "my_run"


def test_command(run, videos, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("clips/40.mp4,cat\nclips/gone.mp4,dog\nclips/16.mp4,cat\n")
    command = ["extract-features", "--checkpoint", str(run), "--videos", str(tmp_path / "list.csv")]
    command += ["--out", str(tmp_path / "out"), "--stride", "2", "--device", "cpu"]
    assert main([*command, "model.num_frames=4"]) == 1
    printed = capsys.readouterr().out
    assert "out: 7 windows of 2 videos\n" in printed
    assert "1 of 3 videos could not be read; index.jsonl says why" in printed
    lines = index_of(tmp_path / "out")
    assert [line["label"] for line in lines] == ["cat", "dog", "cat"]
    assert lines[0]["starts"] == [0, 8, 16, 24, 32] and lines[1]["error"] == "missing"
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["stride"] == 2
    own = [*command[:6], str(tmp_path / "own"), "--device", "cpu"]  # as trained: 4
    assert main(own) == 1
    assert json.loads((tmp_path / "own" / "settings.json").read_text())["stride"] == 4
    os.link(videos[1].path, tmp_path / "clips" / "gone.mp4")
    assert main([*command, "model.num_frames=4"]) == 0
    assert "out: 8 windows of 3 videos, 2 of them from before\n" in capsys.readouterr().out
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: --out=.*: holds features of other settings \(.*\n", error)


def test_interrupting_the_command_loses_nothing(run, videos, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{videos[0].path}\n" * 60)
    out = tmp_path / "out"
    command = ["extract-features", "--checkpoint", str(run), "--videos", str(listed)]
    command += ["--out", str(out), "--stride", "1", "--hop", "2", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tats_fast", *command, "--workers", "1", "--batch-size", "2"],
        **{"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True},
        # Started in the background, where Ctrl-C is ignored, tests would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (out / "index.jsonl").exists() or len(index_of(out)) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and errors == "error: interrupted\n"
    lines = index_of(out)
    assert 3 <= len(lines) < 60
    files = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    # The file that was just finished may lack its line.
    assert {line["file"] for line in lines} <= files.keys() and len(files) <= len(lines) + 1
    assert main([*command, "--workers", "2"]) == 0
    assert len(index_of(out)) == 60
    for line in lines:
        assert (out / line["file"]).stat().st_mtime_ns == files[line["file"]]
    arrays = [np.load(out / line["file"]) for line in index_of(out)]
    assert all(np.allclose(array, arrays[0], rtol=1e-4, atol=1e-5) for array in arrays)


def test_documented_commands_and_snippets_run(run, videos, tmp_path, monkeypatch):
    (tmp_path / "val.csv").write_text("clips/40.mp4,1\nclips/16.mp4,0\n")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "features.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    names: dict = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "docs/features.md", "exec"), names)
        else:
            for command in block.replace("\\\n", "").splitlines():
                program, *arguments = shlex.split(command)
                assert program == "tats-fast" and main(arguments) == 0
    assert len(blocks) == 3
    assert names["features"].shape[1:] == (32,) and len(names["seconds"]) == len(names["features"])
