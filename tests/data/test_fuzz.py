"""The short form of ``make fuzz``, and that it would notice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fuzz
import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_damaged_file_ends_a_run_or_escapes_verify():
    # In a process of its own: runs are forked from it, and a long test session has its own memory.
    code = "import fuzz; print(repr(fuzz.fuzz(300, first=0, seed=7, part=150)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(fuzz.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    names = {"Tally": fuzz.Tally, "Counter": Counter}
    tally = eval(run.stdout.strip().splitlines()[-1], names)
    assert tally.files == 300
    assert 100 < tally.bad < 300  # it does damage, and not everything
    assert sum(tally.skipped.values()) > 30
    assert (tally.ended, tally.hung, tally.unnamed) == ([], [], [])
    # 1080p is among the sources. A worker's share of what it was forked from counts, too.
    assert max(tally.peak_mb.values()) < 600, tally.peak_mb


@pytest.fixture
def few(monkeypatch):
    """Five small sources."""
    monkeypatch.setattr(fuzz, "SOURCES", fuzz.SOURCES[:5])


def test_a_verdict_that_training_contradicts_is_noticed(monkeypatch, few):
    monkeypatch.setattr(fuzz, "examine", lambda *_: {})
    tally = fuzz.fuzz(5, first=8 * 5, seed=0)  # cut off
    assert tally.unnamed and not tally.clean


def test_a_run_that_ends_is_noticed(monkeypatch, few):
    monkeypatch.setattr(fuzz, "make_loader", lambda *_: os._exit(3))
    tally = fuzz.fuzz(1, first=0, seed=0)
    assert any(line.startswith("pyav ended with code 3: 000000") for line in tally.ended)


def test_a_run_that_hangs_is_noticed(monkeypatch, few):
    monkeypatch.setattr(fuzz, "make_loader", lambda *_: time.sleep(60))
    monkeypatch.setattr(fuzz, "_RUN", 0.5)
    tally = fuzz.fuzz(1, first=0, seed=0)
    assert any("pyav did not end" in line for line in tally.ended)


def test_the_same_number_gives_the_same_file(tmp_path):
    sources = fuzz.write_sources(tmp_path)
    assert len({path.suffix for path in sources}) == 12
    for number in (0, 57, 130):
        assert fuzz.damaged(sources, number, 3) == fuzz.damaged(sources, number, 3)
        assert fuzz.damaged(sources, number, 3) != fuzz.damaged(sources, number, 4)
        _, content = fuzz.damaged(sources, number, 3)
        assert content != sources[number % len(sources)].read_bytes()
