"""What the benchmarks share: the machine's description, timing, tables, and the command line."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent


def make_importable() -> None:
    """Let a checkout run that is not installed: find ``tats_fast``, and ``kernels/`` inside it."""
    if find_spec("tats_fast") is None:
        sys.path.append(str(ROOT))
    if find_spec("tats_fast.kernels") is None:
        import tats_fast

        tats_fast.__path__.append(str(ROOT))


# At import, because the scripts import from the package right after this module.
make_importable()

VERSIONED = ("triton", "numpy", "einops", "flash-attn", "flash-attn-4", "av")


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and leave."""
        self.exit(2, f"error: {message}\n")


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    return _at_least(text, 1)


def natural_int(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    return _at_least(text, 0)


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def _at_least(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < low:
        raise argparse.ArgumentTypeError(f"{text} must be at least {low}")
    return value


def fail(message: str, code: int) -> int:
    """Print one line to stderr and return the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code


def hardware(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on; memory in GiB, load as the system's 1-minute average."""
    found: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_memory_gb": round(gpu.total_memory / 2**30, 1)}
        found |= {"gpu_capability": f"sm_{gpu.major}{gpu.minor}"}
    return found


def hardware_line(found: dict[str, Any]) -> str:
    """``hardware`` for people."""
    cpu = (
        f"{found['cpu']}, {found['cpu_cores']} cores, {found['torch_threads']} torch threads, "
        f"{found['cpu_capability']}, load {found['load_1min']}"
    )
    return f"{found['gpu']} ({found['gpu_memory_gb']} GiB); {cpu}" if "gpu" in found else cpu


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Versions of what decides speed; None = not installed."""
    from tats_fast.version import __version__

    found: dict[str, str | None] = {
        "tats_fast": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """HEAD, with ``-dirty`` where tracked files differ from it; None outside a repository."""
    commands = (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    try:
        head, changes = (
            subprocess.run(
                ["git", *command], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("-dirty" if changes else "")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80, linearly interpolated."""
    return {f"p{q}": float(np.percentile(values, q)) for q in (20, 50, 80)}


def synchronize(device: torch.device) -> None:
    """Wait for a GPU's queue; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_ms(
    calls: dict[str, Callable[[], Any]], device: torch.device, repeats: int, warmup: int
) -> dict[str, list[float]]:
    """Times in ms of every call, taken A B C A B C ..., so that a busy machine disturbs all alike.

    The device is drained before and after each call; the first ``warmup`` rounds do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(warmup + repeats):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if round_ >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (cell for cell in row)
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    return "\n".join([line(header), *(line(row) for row in rows)])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def number(value: float | None, digits: int = 1) -> str:
    """A table's cell; ``-`` for what was not measured."""
    return "-" if value is None else f"{value:,.{digits}f}"


def write_json(path: str, record: dict[str, Any]) -> None:
    """Write a record.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def first_line(error: BaseException) -> str:
    """An exception's message for a table: one line of at most 160 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def reason(report: str) -> str:
    """The line of a pytest report that says what was wrong, at most 200 characters."""
    lines = report.strip().splitlines() or [""]
    found = next((line.removeprefix("E").strip() for line in lines if line.startswith("E ")), None)
    return (found or lines[-1])[:200]


def check_writable(path: str | None, option: str = "--json") -> str | None:
    """Why a result could not be written to ``path``, asked before minutes of measuring."""
    if path is None:
        return None
    target = Path(path)
    if target.is_dir():
        return f"{option} {path}: is a folder"
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        return f"{option} {path}: cannot be written"
    return None
