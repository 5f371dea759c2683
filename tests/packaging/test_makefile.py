"""The Makefile: what it hands to pip."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from project import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("given", "installed"),
    [
        (["GPU=GPU 0: H100"], "torch>=2.11"),
        (["GPU="], "torch==2.13.0+cpu"),
        (["GPU=", "TORCH=torch==2.12.0 --index-url here"], "torch==2.12.0 --index-url here"),
    ],
)
def test_torch_of_the_machine(tmp_path, given, installed):
    """A shell takes ``>=2.11`` for a file to write to."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    command = ["make", "--silent", f"--file={ROOT / 'Makefile'}", "PIP=echo", "VENV=.", *given]
    done = subprocess.run(
        [*command, "./.torch"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == installed
    assert sorted(path.name for path in tmp_path.iterdir()) == [".torch", "bin"]
