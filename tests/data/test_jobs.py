"""The job runner: every item once, on record, resumable after any end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from children import heed_interrupts
from records import read_record

from tats_fast.config import ConfigError
from tats_fast.data.video import DecodeError
from tats_fast.data.workers.jobs import run_jobs
from tats_fast.data.workers.progress import JobProgress, Progress


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("x" * number)
    return sorted(map(str, folder.iterdir()))


@pytest.fixture
def run(tmp_path):
    """Runs jobs that note every call, and returns (outcomes, files worked on)."""
    calls, record = tmp_path / "calls", tmp_path / "out" / "record.jsonl"

    def work(path):
        with open(calls, "a") as file:
            file.write(path + "\n")
        name = os.path.basename(path)
        if name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "hang":
            time.sleep(60)
        if name == "raise":
            raise RuntimeError("two\nlines")
        if name == "bad":
            return {"error": "bad"}
        return {"length": os.path.getsize(path)}

    def go(items, **options):
        calls.write_text("")
        options = {"record": record, "workers": 2, "title": "files"} | options
        outcomes = run_jobs(work, items, **options)
        return outcomes, sorted(calls.read_text().splitlines())

    go.record = record
    return go


def test_outcomes_in_order_and_on_record(run, files):
    items = files[::-1]
    outcomes, worked = run([*items, items[0]])
    assert worked == files
    assert list(outcomes.items()) == [(p, {"length": os.path.getsize(p)}) for p in items]
    assert read_record(run.record) == outcomes
    line = json.loads(run.record.read_text().splitlines()[0])
    assert line["bytes"] == line["outcome"]["length"]
    assert line["mtime_ns"] == os.stat(line["key"]).st_mtime_ns


def test_only_what_changed_is_done_again(run, files):
    first, _ = run(files[:4])
    assert run(files[:4]) == (first, [])
    assert run(files)[1] == files[4:]
    os.utime(files[1], (1, 1))
    os.remove(files[2])
    with open(files[3], "a") as file:
        file.write("more")
    outcomes, worked = run(files)
    assert worked == files[1:4]
    assert outcomes[files[3]] == {"length": 7}
    assert "FileNotFoundError" in outcomes[files[2]]["error"]
    assert run(files, settings="other")[1] == files
    assert run(files, settings="other")[1] == [files[2]]


def test_a_bad_item_costs_itself(run, tmp_path, files):
    odd = [str(tmp_path / name) for name in ("die", "hang", "raise", "bad")]
    outcomes, _ = run([*odd, *files], timeout=1.0)
    errors = [outcomes[path]["error"] for path in odd]
    assert errors == [
        "the process reading it died (SIGKILL)",
        "took longer than 1 s",
        "RuntimeError: two lines",
        "bad",
    ]
    assert [outcomes[path].get("lost", False) for path in odd] == [True, True, True, False]
    assert all("error" not in outcomes[path] for path in files)
    # What got lost may have been bad luck; a plain verdict stands.
    assert run([*odd, *files], timeout=1.0)[1] == sorted(odd[:3])


def test_torn_and_damaged_lines_are_done_again(run, files):
    first, _ = run(files)
    lines = run.record.read_bytes().splitlines(keepends=True)
    torn = json.loads(lines[-1])["key"]
    damaged = json.loads(lines[0])["key"]
    run.record.write_bytes(b"".join([b"[1]\n", b"{}\n", b"\xff\n", *lines[1:-1], lines[-1][:-7]]))
    outcomes, worked = run(files)
    assert worked == sorted([torn, damaged])
    assert outcomes == first
    assert run(files) == (first, [])
    run.record.write_bytes(lines[0][:10])  # nothing but a torn line
    assert run(files) == (first, files)


def test_a_result_that_is_gone_is_made_again(run, tmp_path, files, capsys):
    def target(path):
        return tmp_path / f"{os.path.basename(path)}.copy"

    def copy(path):
        target(path).write_text(path)
        return {"copied": True}

    def go():
        options = {"record": run.record, "workers": 1, "title": "files"}
        return run_jobs(copy, files, result=target, **options)

    first = go()
    (tmp_path / "3.txt.copy").unlink()
    assert go() == first
    assert (tmp_path / "3.txt.copy").exists()
    assert "1 results are gone or changed, and are made again" in capsys.readouterr().out
    assert len(run.record.read_text().splitlines()) == 7
    # Another source's result, at the same place.
    (tmp_path / "4.txt.copy").write_text("another's")
    assert go() == first
    assert len(run.record.read_text().splitlines()) == 8
    go()
    assert len(run.record.read_text().splitlines()) == 8


def test_a_video_that_does_not_decode_is_a_plain_verdict(tmp_path):
    def fail(path):
        raise DecodeError(path, "no frame")

    (tmp_path / "a").touch()
    options = {"record": tmp_path / "record.jsonl", "workers": 1, "title": "files"}
    for _ in range(2):  # and not tried again
        outcomes = run_jobs(fail, [str(tmp_path / "a")], **options)
        assert outcomes == {str(tmp_path / "a"): {"error": "no frame"}}
    assert len((tmp_path / "record.jsonl").read_text().splitlines()) == 1


def test_names_that_are_not_utf8(run, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff")
    with open(path, "w") as file:
        file.write("abc")
    assert run_jobs(
        lambda item: {"name": item}, [path], record=run.record, workers=1, title="files"
    ) == {path: {"name": path}}
    assert read_record(run.record) == {path: {"name": path}}


SLOW = """
import sys, time
from pathlib import Path
from tats_fast.data.video import DecodeError
from tats_fast.data.workers.jobs import run_jobs

def work(path):
    time.sleep(20 if Path(path).name >= "10" else 0)
    return {"ok": True}

try:
    run_jobs(work, sys.argv[2:], record=Path(sys.argv[1]), workers=2, title="files")
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("how, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_run_continues(run, tmp_path, how, code):
    files = [tmp_path / f"{number:02d}" for number in range(15)]
    for path in files:
        path.touch()
    names = list(map(str, files))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, run.record, *names], preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 20
    while not run.record.exists() or run.record.read_bytes().count(b"\n") < 10:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(timeout=5) == code
    finished = read_record(run.record)
    assert sorted(finished) == names[:10]  # each written as it came
    outcomes, worked = run(names)  # at once: no lock is left behind
    assert worked == sorted(set(names) - set(finished))
    assert list(outcomes) == names
    assert {name: outcomes[name] for name in finished} == finished


def test_one_process_per_record(run, files):
    code = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'a')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    run.record.parent.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", code, run.record], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(ConfigError, match="another process is writing it"):
        run(files)
    holder.communicate()
    assert run(files)[1] == files


def test_a_record_that_cannot_be_written(run, files, tmp_path):
    with pytest.raises(ConfigError, match=r"record\.jsonl: cannot be written"):
        run(files, record=tmp_path / "files" / "0.txt" / "record.jsonl")


def test_progress_lines(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("tats_fast.data.workers.progress.time.monotonic", lambda: now[0])
    with JobProgress("files", 100, done=10) as progress:
        for number in range(80):
            now[0] += 0.125
            progress.step(failed=number == 0)
    assert capsys.readouterr().out.splitlines() == [
        "10 of 100 files are done already",
        "50/100 files  8.0/s  1 failed  ETA 0:00:06",
        "90/100 files  8.0/s  1 failed  ETA 0:00:01",
    ]


def test_a_sparse_display_is_a_line_every_half_minute_on_stderr(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("tats_fast.data.workers.progress.time.monotonic", lambda: now[0])
    for seconds, expected in (
        (0.25, []),
        (1.0, ["31/100 videos", "61/100 videos", "91/100 videos"]),
    ):
        with JobProgress("videos", 100, done=1, sparse=True) as progress:
            for done in range(2, 100):
                now[0] += seconds
                progress.at(done)
        shown = capsys.readouterr()
        assert [line.partition("  ")[0] for line in shown.err.splitlines()] == expected
        assert shown.out == ""


@pytest.mark.parametrize("columns", [80, 120])
def test_a_sparse_display_fits_the_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("tats_fast.data.workers.progress._BAR_EVERY", 0.0)
    with JobProgress("train videos", 240_000, sparse=True) as progress:
        progress.at(239_999, failed=12_345)
    shown = capsys.readouterr()
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.err).split("\r")[-1].strip()
    for part in ("train videos", "239999/240000", "ETA", "/s  12345 failed"):
        assert part in plain, plain
    assert all(len(line) <= columns for line in plain.splitlines()) and shown.out == ""


def test_progress_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("tats_fast.data.workers.progress._BAR_EVERY", 0.0)
    with JobProgress("files", 3) as progress:
        for _ in range(3):
            progress.step()
    out = capsys.readouterr().out
    assert "files" in out
    assert "3/3" in out


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_count_time_and_notes_whole(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = Progress(120_000, 0)
    notes = "1030 clips/s  loss 0.5379  entropy 0.981  lift 1.203"  # a run's longest
    progress.show(119_000, "step 119000/120000", notes)
    progress.close()
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().out).split("\r")[-1]
    for part in ("119000/120000", "ETA", notes):
        assert part in plain, plain
    assert ("━" in plain) is (columns > 80)
