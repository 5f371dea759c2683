"""Everything to know about one GPU in one command and under nine minutes (``make gpu-suite``).

    python benchmarks/gpu_suite.py

Tests against fp32 references, kernel tuning, ops, whole steps at ViT-B 16 x 224 x 224, memory, a
profile and the kernels' resources, each in a process of its own with its own time budget: one that
fails or runs out of time is recorded as such and the others go on. Writes one record folder and
prints the targets last. Needs torch, triton, numpy, einops, pyyaml and pytest; what else is missing
is skipped by name. ``--quick`` runs what a machine without a GPU can of it, at tiny sizes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import torch
from parts import bench
from parts.bench import ROOT
from parts.suite.sections import Section, full_sections, quick_sections
from parts.suite.summary import write_record

TOTAL_SECONDS = 525.0
"""Under nine minutes with the start and the summary."""
LEAST_SECONDS = 5.0
LOG_BYTES = 200_000
"""Of each section's output, the last that much goes into the log."""
HIDDEN_VARIABLES = ("TATS_KERNELS", "TRITON_INTERPRET")
"""A user's settings that would change what is measured."""


@dataclass
class Outcome:
    """How a section ended: "ok", "failed", "timed out" or "skipped", and after how many seconds."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    output: str = ""


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", metavar="DIR", help="record folder (default: benchmarks/records/<date>_<gpu>_suite"
        "; with --quick, runs/gpu_suite_quick)")  # fmt: skip
    add("--quick", action="store_true", help="tiny sizes on the CPU; what needs a GPU is skipped")
    add("--limit", type=bench.positive_float, default=TOTAL_SECONDS, help="seconds in all "
        "(default: %(default)g)")  # fmt: skip
    add("--only", metavar="A,B", help="of the sections' names")
    return parser


def run_sections(sections: Sequence[Section], out: Path, total: float) -> list[Outcome]:
    """Run them in order within ``total`` seconds; a section may use what those before it left."""
    deadline = time.monotonic() + total
    outcomes = []
    for index, section in enumerate(sections):
        kept = sum(later.reserve for later in sections[index + 1 :] if later.missing is None)
        left = deadline - time.monotonic()
        granted = min(section.limit, max(left - kept, min(section.reserve, left)))
        if section.missing is not None:
            outcome = Outcome(section.name, "skipped", detail=section.missing)
        elif granted < LEAST_SECONDS:
            outcome = Outcome(section.name, "skipped", detail="no time left")
        else:
            outcome = run_section(section, out, granted)
        outcomes.append(outcome)
        detail = f": {outcome.detail}" if outcome.detail else ""
        print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s{detail}", flush=True)
    return outcomes


def run_section(section: Section, out: Path, granted: float) -> Outcome:
    """One section in a process group of its own, ended after ``granted`` seconds."""
    start = time.monotonic()
    log = out / f".{re.sub(r'[^a-z0-9]+', '_', section.name.lower())}.log"
    environment = {k: v for k, v in os.environ.items() if k not in HIDDEN_VARIABLES}
    environment["PYTHONUNBUFFERED"] = "1"
    helpers: list[subprocess.Popen] = []
    status, detail = "ok", ""
    with log.open("wb") as file:
        try:
            for command in section.helpers:
                helpers.append(_start(command, subprocess.DEVNULL, environment))
            process = _start(section.command(out, granted), file, environment)
            try:
                code = process.wait(granted)
                if code != 0:
                    status, detail = "failed", f"exit code {code}"
            except subprocess.TimeoutExpired:
                status, detail = "timed out", f"after {granted:.0f} s; what it had written counts"
            finally:
                _end(process)
            for helper in helpers:  # what they have not compiled yet would cost later sections
                with contextlib.suppress(subprocess.TimeoutExpired):
                    helper.wait(max(0.0, granted - (time.monotonic() - start)))
        except Exception as error:
            status, detail = "failed", bench.first_line(error)
        finally:
            for helper in helpers:
                _end(helper)
    output = log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
    log.unlink()
    if status == "failed" and output.strip():
        detail += f"; {output.strip().splitlines()[-1][:160]}"
    return Outcome(section.name, status, time.monotonic() - start, detail, output)


def _start(command: list[str], output: IO | int, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def _end(process: subprocess.Popen) -> None:
    """End a section's whole process group, children that outlived it included."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def default_folder(quick: bool) -> Path:
    """Where the record goes unless --out says."""
    if quick:
        return ROOT / "runs" / "gpu_suite_quick"
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower().replace("nvidia", ""))
    date = datetime.date.today().isoformat()
    return ROOT / "benchmarks" / "records" / f"{date}_{gpu.strip('-')}_suite"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 every section ran or was skipped; 1 one failed, or there is no GPU; 2 wrong use."""
    options = make_parser().parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        return bench.fail("no CUDA GPU is visible here; --quick runs what a CPU can of it", 1)
    sections = quick_sections() if options.quick else full_sections()
    if options.only is not None:
        names = [name.strip() for name in options.only.split(",")]
        known = [section.name for section in sections]
        unknown = [name for name in names if name not in known]
        if unknown:
            return bench.fail(f"--only {unknown[0]}: must be of {', '.join(known)}", 2)
        sections = [section for section in sections if section.name in names]
    out = Path(options.out) if options.out else default_folder(options.quick)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.md").touch()
    except OSError as error:
        return bench.fail(f"--out {out}: {error.strerror}", 2)
    start = time.monotonic()
    outcomes = run_sections(sections, out.resolve(), options.limit)
    command = f"python benchmarks/gpu_suite.py{' --quick' if options.quick else ''}"
    seconds = time.monotonic() - start
    print(write_record(out, [asdict(o) for o in outcomes], command, seconds, options.quick))
    return int(any(outcome.status in ("failed", "timed out") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
