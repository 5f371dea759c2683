"""Runs of ``tats-fast verify`` that meet accidents, are stopped, and continue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import heed_interrupts
from data_files import write_video
from records import read_lines

from tats_fast.cli import main
from tats_fast.data.bad_files import read_bad_files
from tats_fast.data.lists import read_videos
from tats_fast.prepare.examine import examine


def plain(path: Path) -> None:
    write_video(path, 12)


def test_hangs_deaths_and_deletions_cost_their_file(tmp_path, monkeypatch):
    for name in ("0 first", "deleted", "dies", "hangs", "raises", "z last"):
        plain(tmp_path / f"{name}.mp4")

    def odd_examine(path, *options):
        name = os.path.basename(path)
        if name == "0 first.mp4":
            os.remove(tmp_path / "deleted.mp4")
        if name == "dies.mp4":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "hangs.mp4":
            time.sleep(60)
        if name == "raises.mp4":
            raise MemoryError
        return examine(path, *options)

    monkeypatch.setattr("tats_fast.prepare.verify.examine", odd_examine)
    arguments = ["verify", f"--root={tmp_path}", f"--out={tmp_path}/out", "--workers=1"]
    assert main([*arguments, "--timeout=1"]) == 1
    bad = read_bad_files(tmp_path / "out" / "bad.txt")
    assert {os.path.basename(path): reason for path, reason in bad.items()} == {
        "deleted.mp4": "missing",
        "dies.mp4": "the process reading it died (SIGKILL)",
        "hangs.mp4": "took longer than 1 s",
        "raises.mp4": "MemoryError",
    }
    good = [os.path.basename(video.path) for video in read_videos(tmp_path / "out" / "good.txt")]
    assert good == ["0 first.mp4", "z last.mp4"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_run_continues(tmp_path, how, code):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "00.mp4", 150, width=320, height=240, options={"preset": "ultrafast"})
    for number in range(1, 40):
        os.link(folder / "00.mp4", folder / f"{number:02d}.mp4")
    arguments = ["verify", f"--root={folder}", f"--out={tmp_path}/out", "--mode=full"]
    record = tmp_path / "out" / "verify.jsonl"
    command = [sys.executable, "-m", "tats_fast.cli", *arguments, "--workers=1"]
    with open(tmp_path / "errors", "wb") as errors:
        process = subprocess.Popen(command, stderr=errors, preexec_fn=heed_interrupts)
    while not record.exists() or record.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(how)
    assert process.wait(timeout=5) == code
    said = "error: interrupted\n" if how == signal.SIGINT else ""
    assert (tmp_path / "errors").read_text() == said
    assert not (tmp_path / "out" / "good.txt").exists()
    before = record.read_bytes()
    finished = before[: before.rfind(b"\n") + 1]
    assert 5 <= finished.count(b"\n") < 40
    assert main([*arguments, "--workers=2"]) == 0
    assert record.read_bytes().startswith(finished)
    keys = [line["key"] for line in read_lines(record)]
    assert sorted(keys) == sorted(str(path) for path in folder.iterdir())  # each once
    assert len(read_videos(tmp_path / "out" / "good.txt")) == 40


def test_only_what_changed_is_looked_at_again(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        plain(tmp_path / name)
    arguments = ["verify", f"--root={tmp_path}", f"--out={tmp_path}/out"]
    lines = tmp_path / "out" / "verify.jsonl"
    for extra, count in (([], 2), ([], 2), (["--mode=full"], 4), (["--mode=full"], 4)):
        assert main([*arguments, *extra]) == 0
        assert len(lines.read_text().splitlines()) == count
    (tmp_path / "b.mp4").write_bytes(b"")
    assert main([*arguments, "--mode=full"]) == 1
    assert len(lines.read_text().splitlines()) == 5
    assert read_bad_files(tmp_path / "out" / "bad.txt") == {f"{tmp_path}/b.mp4": "empty file"}
