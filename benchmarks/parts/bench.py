"""What the benchmarks share: the command line, the record's first entries, timing, and tables."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from parts import ROOT
from tats_fast.config import ConfigError
from tats_fast.data.workers.progress import JobProgress
from tats_fast.version import __version__

VERSIONED = ("triton", "numpy", "einops", "flash-attn", "flash-attn-4", "av")


class Failed(Exception):
    """A benchmark that cannot give a result, or whose result is wrong; one line."""


class Parser(argparse.ArgumentParser):
    """argparse that describes a script by the first line of its docstring, and complains in one
    line with exit code 2."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description.splitlines()[0])

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and exit."""
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")


def run_script(parser: Parser, run: Callable[[Any], int], argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, see that ``--json`` and ``--plot`` can be written, and call ``run``.

    Returns:
        what ``run`` returns; after one line on stderr 1 for ``Failed`` and 2 for ``ConfigError``.
    """
    options = parser.parse_intermixed_args(argv)
    try:
        check_writable("--json", getattr(options, "json", None))
        check_chart("--plot", getattr(options, "plot", None))
        return run(options)
    except (ConfigError, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def check_writable(option: str, path: str | None) -> None:
    """Raise ``ConfigError`` if no result could be written, before minutes of measuring."""
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise ConfigError(f"{option} {path}: is a folder")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise ConfigError(f"{option} {path}: cannot be written")


def check_chart(option: str, path: str | None) -> None:
    """Raise ``ConfigError`` if no chart could be drawn and written to ``path``."""
    if path is not None and not installed("matplotlib"):
        raise ConfigError(f"{option}: matplotlib is not installed; pip install matplotlib")
    if path is not None and not path.endswith(".png"):
        raise ConfigError(f"{option} {path}: must end in .png")
    check_writable(option, path)


def whole_number(low: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least ``low``."""

    def convert(text: str) -> int:
        if int(text) < low:
            raise argparse.ArgumentTypeError(f"{text} must be at least {low}")
        return int(text)

    convert.__name__ = "whole number"  # argparse names it where int() fails
    return convert


positive_int, natural_int = whole_number(1), whole_number(0)


def positive_float(text: str) -> float:
    """An argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def names_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: names separated by commas, returned in the order of ``known``."""

    def convert(text: str) -> tuple[str, ...]:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(known)}")
        return tuple(name for name in known if name in names)

    return convert


def new_record(device: torch.device, *packages: str) -> dict[str, Any]:
    """A record's first entries: where it was measured, and with what.

    Args:
        device: what is measured.
        packages: distributions whose versions matter to this benchmark alone.
    """
    # HEAD, with ``-dirty`` where tracked files differ from it; None outside a repository.
    commit = output_of("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return {"hardware": hardware(device), "versions": versions(*packages), "commit": commit}


def provenance(record: dict[str, Any], *packages: str) -> list[str]:
    """Two lines of text about ``new_record``, with the versions of ``packages``."""
    used = record["versions"]
    named = [f"{name} {used[name] or 'not installed'}" for name in packages]
    source = f"tats-fast {used['tats_fast']} at {record['commit'] or 'unknown commit'}"
    return [hardware_line(record["hardware"]), ", ".join([source, *named])]


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine; memory in GiB, load as the system's 1-minute average."""
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {"gpu": gpu.name, "gpu_memory_gb": round(gpu.total_memory / 2**30, 1)}
        facts |= {"gpu_capability": f"sm_{gpu.major}{gpu.minor}"}
    return facts


def hardware_line(facts: dict[str, Any]) -> str:
    """``hardware`` as one line of text."""
    cpu = (
        f"{facts['cpu']}, {facts['cpu_cores']} cores, {facts['torch_threads']} torch threads, "
        f"{facts['cpu_capability']}, load {facts['load_1min']}"
    )
    return f"{facts['gpu']} ({facts['gpu_memory_gb']} GiB); {cpu}" if "gpu" in facts else cpu


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        if model := re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M):
            return model[1].strip()
    return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of what decides speed, ``packages`` included; None = not installed."""
    numbers: dict[str, str | None] = {
        "tats_fast": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }
    for name in (*VERSIONED, *packages):
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = None
    return numbers


def installed(module: str) -> bool:
    """Whether ``module`` can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def output_of(*command: str) -> str | None:
    """What a program prints; None where it is not installed, fails or takes half a minute."""
    settings = {"cwd": ROOT, "timeout": 30, "check": True}
    try:
        return subprocess.run(command, capture_output=True, text=True, **settings).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def end_by(deadline: float, processes: Sequence[subprocess.Popen]) -> None:
    """Wait for processes until ``deadline`` on ``time.monotonic``, and kill those still at work."""
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()  # does nothing to one that has ended
        process.wait()


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
    rounds = warmup + repeats
    with JobProgress("rounds", rounds, sparse=True) as progress:
        for round_ in range(rounds):
            for name, call in calls.items():
                synchronize(device)
                start = time.perf_counter()
                call()
                synchronize(device)
                if round_ >= warmup:
                    times[name].append(1e3 * (time.perf_counter() - start))
            progress.step()
    return times


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    first, *others = ([len(text) for text in column] for column in zip(header, *rows, strict=True))
    form = "  ".join([f"{{:<{max(first)}}}", *(f"{{:>{max(lengths)}}}" for lengths in others)])
    return "\n".join(form.format(*row).rstrip() for row in (header, *rows))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def put_between(page: str, mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` of a Markdown page.

    Raises:
        ConfigError: the page cannot be read or written, or has not exactly one pair of them.
    """
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    try:
        before, rest = Path(page).read_text().split(begin)
        _, after = rest.split(end)
        Path(page).write_text(f"{before}{begin}\n{text}\n{end}{after}")
    except OSError as error:
        raise ConfigError(f"--update {page}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"--update {page}: one pair of {begin} and {end} is needed") from None


def number(value: float | None, digits: int = 1) -> str:
    """A table's cell with ``digits`` decimals; ``-`` for what was not measured."""
    return "-" if value is None else f"{value:,.{digits}f}"


def write_json(path: str | Path, record: dict[str, Any]) -> None:
    """Write a record.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def replace_json(path: Path, record: dict[str, Any]) -> None:
    """The same, so that at any time the old or the new record is there, and whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    write_json(unfinished, record)
    os.replace(unfinished, path)


def first_line(error: BaseException) -> str:
    """An exception's message for a table: one line of at most 160 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def reason(report: str) -> str:
    """The line of a pytest report that says what was wrong, at most 200 characters."""
    lines = report.strip().splitlines() or [""]
    errors = (line.removeprefix("E").strip() for line in lines if line.startswith("E "))
    return (next(errors, None) or lines[-1])[:200]
