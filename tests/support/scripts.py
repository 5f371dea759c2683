"""Running a script of benchmarks/ as a user does."""

from __future__ import annotations

import os
import subprocess
import sys

from project import ROOT


def run_script(name: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run ``benchmarks/<name>`` from the repository's root in one thread, and catch its output."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
