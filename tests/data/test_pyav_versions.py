"""Decoding with the oldest and the newest release of PyAV, in every interpreter found here."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_files import write_video
from environments import PYTHONS, interpreter
from project import ROOT

from tats_fast import doctor
from tats_fast.data.pyav import open_options
from tats_fast.data.video import decode_window

OLDEST, NEWEST = "av==14.1.0", "av"
CHILD = """
import sys
import av, numpy
from tats_fast.data import clip, pixels, video, views, windows
assert "torch" not in sys.modules
print(av.__version__)
numpy.save(sys.argv[1], numpy.stack([video.decode_window(p, 16, 2, 64) for p in sys.argv[2:]]))
"""
# PyAV's own scaling in one thread, and a process forked by another, as a loader does it.
FORKED = """
import sys, threading
import av
from tats_fast.data.workers.pool import Workers
with av.open(sys.argv[1]) as container:
    next(container.decode(video=0)).to_ndarray(format="rgb24", width=32, height=32)
def start():
    with Workers(abs, 1, 20.0) as workers:
        workers.submit(-7)
        print(*workers.collect())
thread = threading.Thread(target=start)
thread.start()
thread.join()
"""


def without_utf8(path: Path) -> Path:
    """A video with a title that is not UTF-8, as clips of HMDB51 have."""
    write_video(path, 40, "mjpeg", pix_fmt="yuvj420p", title="zzzz")
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"\xe9\xff\xfe\xe9"))
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("release", [OLDEST, NEWEST], ids=["oldest", "newest"])
@pytest.mark.parametrize("version", PYTHONS)
def test_the_same_pixels_also_in_a_forked_process(tmp_path, demo_clips, version, release):
    base = interpreter(version)
    if base is None:
        pytest.skip(f"no Python {version} here")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([base, "-m", "venv", tmp_path / "venv"], check=True, capture_output=True)
    packages = [release, "numpy", "pyyaml"]
    install = [python, "-m", "pip", "install", "-q", "--only-binary=:all:", *packages]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)}: {done.stderr.strip()[-200:]}")
    odd = without_utf8(tmp_path / "odd.avi")
    files = [str(demo_clips / "hmdb51_punch.mp4"), str(odd), str(doctor._FRAME)]
    command = [python, "-c", CHILD, tmp_path / "clips.npy", *files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    clips = np.load(tmp_path / "clips.npy")
    expected = np.stack([decode_window(path, 16, 2, 64) for path in files])
    assert clips.shape == expected.shape and clips.dtype == np.uint8
    if digest(clips) != digest(expected):  # another FFmpeg may round otherwise
        error = np.abs(clips.astype(int) - expected)
        assert error.mean() < 2, f"PyAV {done.stdout.strip()} is off by {error.mean():.2f}"
    # Release 19 keeps a scaler for each thread, which a forked child must not free.
    command = [python, "-W", "ignore", "-c", FORKED, files[0]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "(0, 7)\n", done.stdout + done.stderr


def digest(clips: np.ndarray) -> str:
    return hashlib.sha256(clips.tobytes()).hexdigest()


def test_doctor_decodes_a_frame(monkeypatch, tmp_path):
    assert doctor.decoding_problem() is None
    # What a release without the option says to it, as PyAV 19 did.
    monkeypatch.setattr(
        "tats_fast.data.opening.open_options", lambda *_: {"no_such_option": "ignore"}
    )
    problem = doctor.decoding_problem()
    assert "TypeError" in problem and "no_such_option" in problem and "\n" not in problem
    lines = [line for line in doctor.report_lines() if "PyAV" in line]
    assert lines == [f"  PyAV: no, {problem}"]
    monkeypatch.setattr("tats_fast.data.opening.open_options", open_options)
    monkeypatch.setattr(doctor, "_FRAME", write_video(tmp_path / "other.mp4", 1))
    assert doctor.decoding_problem() == "decoding a frame gave a wrong picture"
    monkeypatch.setattr(doctor, "_FRAME", tmp_path / "gone.mp4")
    assert doctor.decoding_problem().endswith("gone.mp4: missing")


def test_doctor_without_pyav(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert doctor.decoding_problem() == "not installed; pip install av"
