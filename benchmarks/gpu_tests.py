"""The tests marked ``gpu``, spread over processes because compiling kernels takes most of the time.

    python benchmarks/gpu_tests.py --workers 8 --limit 120 --json tests.json

Every finished test is written down at once: what a time limit cuts off is "not run", the rest
still counts. After a CUDA error, or when a test kills its process, a new process goes on with the
tests that are left, so that the failure reported is the first and takes no other test with it.
Needs pytest only, and a checkout that need not be installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from parts import ROOT, bench
from parts.isolate import is_cuda_error

MARK = "pytest.mark.gpu"
OUTCOMES = ("passed", "failed", "skipped")
PRINTED_FAILURES = 20
LOST = 70
"""Exit code of a shard whose CUDA context is gone."""
RESTARTS = 20
"""Of each shard at most."""


class Shard:
    """pytest plugin: every ``count``-th selected test from the ``index``-th on, results to a file
    with one JSON line per test."""

    def __init__(self, index: int, count: int, results: Path) -> None:
        self._index, self._count, self._results = index, count, results
        self._session: Any = None
        self.lost = False
        """Whether a CUDA error ended it."""
        notes = read_notes(results)
        self._ended = {note["test"] for note in notes if "test" in note}
        for note in notes:  # of a process that went on no further
            if note.get("started", "") not in {"", *self._ended}:
                self._ended.add(note["started"])
                self._note(test=note["started"], outcome="failed", problem="its process died")

    def pytest_sessionstart(self, session: Any) -> None:
        """Keep what can be told to stop."""
        self._session = session

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test that never ends is known by this line."""
        self._note(started=nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Keep this shard's tests; runs after pytest's own selection by mark."""
        self._note(selected=len(items))
        mine = [i for i in items[self._index :: self._count] if i.nodeid not in self._ended]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One line per test: its call, or the phase that ended it early."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            problem = "" if report.passed or report.skipped else report.longreprtext[-1500:]
            self._note(test=report.nodeid, outcome=report.outcome, problem=problem)
        if report.failed and is_cuda_error(report.longreprtext):
            self.lost = True
            self._session.shouldstop = "the CUDA context is lost"

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported fails as a whole."""
        if report.failed and self._index == 0 and report.nodeid not in self._ended:
            problem = report.longreprtext[-1500:]
            self._note(test=report.nodeid, outcome="failed", problem=problem, collected=False)

    def _note(self, **line: Any) -> None:
        with self._results.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_notes(results: Path) -> list[dict[str, Any]]:
    """The lines of a shard's file; one that a kill cut short is left out."""
    notes = []
    for line in results.read_text().splitlines() if results.exists() else []:
        with contextlib.suppress(ValueError):
            notes.append(json.loads(line))
    return notes


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    workers = max(1, min(12, (os.cpu_count() or 1) * 3 // 4))
    add("--workers", type=bench.positive_int, default=workers)
    add("--limit", type=bench.positive_float, default=600.0, help="seconds")
    add("--mark", default="gpu", help="pytest's -m (default: %(default)s)")
    add("--files", nargs="+", metavar="FILE", help="test files (default: those with that mark)")
    add("--json", metavar="FILE", help="write the outcome")
    add("--shard", nargs=3, metavar=("I", "N", "FILE"), help="used by this script on itself")
    return parser


def run_shard(options: Any) -> int:
    """pytest on one shard, in this process."""
    index, count, results = options.shard
    arguments = ["-q", "--no-header", "-p", "no:cacheprovider", "-m", options.mark]
    arguments += ["-o", "addopts=--import-mode=importlib", "--continue-on-collection-errors"]
    # Files without the mark may need packages that are not there.
    marked = (p for p in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in p.read_text())
    plugin = Shard(int(index), int(count), Path(results))
    code = pytest.main([*arguments, *(options.files or map(str, marked))], plugins=[plugin])
    return LOST if plugin.lost else int(code)


def start_shard(options: Any, index: int, file: Path) -> subprocess.Popen:
    """A process for one shard, which leaves out what ``file`` says has ended."""
    command = [sys.executable, __file__, "--mark", options.mark]
    command += ["--shard", str(index), str(options.workers), str(file)]
    command += ["--files", *options.files] if options.files else []
    return subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, stderr=sys.stderr)


def run_all(options: Any) -> dict[str, Any]:
    """All shards side by side; what they wrote down, counted."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.jsonl" for index in range(options.workers)]
        begin = partial(start_shard, options)
        shards = [begin(index, file) for index, file in enumerate(files)]
        restarts = [0] * len(files)
        while time.monotonic() < start + options.limit:
            for index, shard in enumerate(shards):
                code = shard.poll()
                broken = code is not None and (code < 0 or code == LOST)
                if broken and restarts[index] < RESTARTS:
                    restarts[index] += 1
                    shards[index] = begin(index, files[index])
            if all(shard.poll() is not None for shard in shards):
                break
            time.sleep(0.1)
        bench.end_by(start + options.limit, shards)
        notes = [note for file in files for note in read_notes(file)]
    return {**count(notes), "seconds": round(time.monotonic() - start, 1)}


def count(notes: list[dict[str, Any]]) -> dict[str, Any]:
    """Outcomes in numbers, and the failures."""
    tests = [note for note in notes if "test" in note]
    numbers = {kind: sum(t["outcome"] == kind for t in tests) for kind in OUTCOMES}
    ended = sum(t.get("collected", True) for t in tests)
    selected = max((note["selected"] for note in notes if "selected" in note), default=0)
    return {
        **numbers,
        "not_run": max(0, selected - ended),
        "failures": {t["test"]: t["problem"] for t in tests if t["outcome"] == "failed"},
    }


def run(options: Any) -> int:
    """All shards or one; 0 only if every test passed or was skipped."""
    if options.shard:
        return run_shard(options)
    done = run_all(options)
    if options.json:
        bench.write_json(options.json, done)
    for name, text in list(done["failures"].items())[:PRINTED_FAILURES]:
        print(f"FAILED {name}: {bench.reason(text)}")
    numbers = ", ".join(f"{done[kind]} {kind}" for kind in OUTCOMES)
    print(f"{numbers}, {done['not_run']} not run, {done['seconds']} s")
    # Nothing run at all is no success.
    return int(done["failed"] > 0 or done["not_run"] > 0 or done["passed"] + done["skipped"] == 0)


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
