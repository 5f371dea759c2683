"""The project as a wheel, and virtual environments of any Python to install it in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from project import ROOT

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""What ``requires-python`` and the classifiers say."""
_LEFT_OUT = (".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "tests", "benchmarks")


def interpreter(version: str) -> str | None:
    """A Python of this version that makes environments, or None. pyenv's own are not on the path,
    and its shims may not work."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [shutil.which(f"python{version}")]
    candidates += [str(path) for path in pyenv.glob(f"{version}.*/bin/python{version}")]
    for path in filter(None, candidates):
        if subprocess.run([path, "-m", "venv", "-h"], capture_output=True).returncode == 0:
            return path
    return None


def build_wheel(folder: Path) -> Path:
    """Build the wheel in ``folder``, from a copy: a ``build/`` left in the tree would get in."""
    with tempfile.TemporaryDirectory() as copy:
        source = Path(copy) / "source"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        run([*command, "-w", folder, source])
    return next(folder.glob("tats_fast-*.whl"))


def make_environment(base: str, folder: Path) -> Path:
    """A new virtual environment; returns its Python."""
    run([base, "-m", "venv", folder])
    return folder / "bin" / "python"


def run(command: list, **settings) -> str:
    """What a command prints; raises ``CalledProcessError`` that shows it."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings
    )
    if done.returncode:
        raise Failed(f"{' '.join(words)}\n{done.stdout[-4000:]}")
    return done.stdout


class Failed(RuntimeError):
    """A command that failed: itself and the end of its output."""
