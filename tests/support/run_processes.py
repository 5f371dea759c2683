"""Training commands as processes of their own, alone or under a launcher, and waiting for them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from project import ROOT

BIN = Path(sys.executable).parent
TRAIN = str(ROOT / "tats_fast" / "train.py")


def start(
    config: Path,
    *overrides: str,
    launcher: str = "python",
    ranks: int = 2,
    script: str | tuple[str, ...] = TRAIN,
):
    """``tats-fast pretrain`` on a configuration file, its output caught in a pipe.

    Args:
        launcher: ``python`` (one process), ``torchrun`` or ``deepspeed``.
        script: to start in place of the project's own; several arguments name a module.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = {
        "python": [sys.executable],
        "torchrun": [
            *(sys.executable, "-m", "torch.distributed.run"),
            *(f"--nproc_per_node={ranks}", f"--master_port={port}"),
        ],
        "deepspeed": [
            str(BIN / "deepspeed"),
            f"--num_accelerators={ranks}",
            f"--master_port={port}",
        ],
    }[launcher]
    parts = (script,) if isinstance(script, str) else script
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [*command, *parts, "--config", str(config), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        cwd=config.parent,
    )


def finish(process: subprocess.Popen, seconds: float = 200) -> str:
    """Its output, once it has ended well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-3000:]
    return output


def wait_for(condition: Callable[[], Any], process: subprocess.Popen, seconds: float = 90) -> None:
    """Poll until ``condition()`` or the process ends."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition(), process.communicate()[0] if process.poll() is not None else "timed out"


def steps(run_dir: Path, name: str = "metrics.jsonl") -> list[int]:
    """Steps of the lines that a run has logged so far; a line being written does not count."""
    path = run_dir / name
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [json.loads(line)["step"] for line in whole.splitlines()]


def ranks_below(pid: int, script: str = TRAIN) -> list[int]:
    """The processes below ``pid`` that train: they run the script themselves."""
    found = []
    for child in _children(pid):
        arguments = _command(child)
        if len(arguments) > 1 and "python" in arguments[0] and script in arguments[:4]:
            found.append(child)
        else:
            found += ranks_below(child, script)
    return found


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
