"""Everything to know about one GPU in one command and about ten minutes (``make gpu-suite``).

    python benchmarks/gpu_suite.py --stage a --out contact    # 150 s: does it run, is it right
    python benchmarks/gpu_suite.py --stage b --out record     # 460 s: how fast, in order of worth

Each section has a process of its own and its own time budget: one that fails or runs out of time is
recorded as such and the others go on. The record, at most eight files of which record.tar.gz holds
everything, is written anew after every section, so that what is there when a machine goes away
counts; the targets are printed last. Needs torch, triton, numpy, einops, pyyaml and pytest; what
else is missing is skipped by name. Without ``--stage`` both run. ``--quick`` runs what a machine
without a GPU can of it, at tiny sizes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from parts import ROOT, bench
from parts.isolate import first_failure
from parts.suite.sections import STAGE_SECONDS, Section, full_sections, quick_sections, script
from parts.suite.summary import write_record

from tats_fast.config import ConfigError

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
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    folders = "benchmarks/records/<date>_<gpu>_suite; with --quick, runs/gpu_suite_quick"
    add("--out", metavar="DIR", help=f"record folder (default: {folders})")
    add("--quick", action="store_true", help="tiny sizes on the CPU; what needs a GPU is skipped")
    add("--stage", choices=tuple(STAGE_SECONDS), help="default: both")
    seconds = ", ".join(f"{name}: {limit:g}" for name, limit in STAGE_SECONDS.items())
    total = f"seconds in all (default: those of the stages, {seconds})"
    add("--limit", type=bench.positive_float, help=total)
    names = bench.names_of([section.name for section in full_sections(None)])
    add("--only", type=names, metavar="A,B", help="of the sections' names")
    return parser


def run_sections(
    sections: Sequence[Section],
    out: Path,
    total: float,
    save: Callable[[list[Outcome]], object] = lambda outcomes: None,
) -> list[Outcome]:
    """Run them in order within ``total`` seconds; a section may use what those before it left.

    Args:
        out: where raw results and logs go.
        save: called after every section with the outcomes so far.
    """
    deadline = time.monotonic() + total
    outcomes = []
    for index, section in enumerate(sections):
        reserved = sum(later.reserve for later in sections[index + 1 :] if later.missing is None)
        left = deadline - time.monotonic()
        granted = min(section.limit, max(left - reserved, min(section.reserve, left)))
        if section.missing is not None:
            outcome = Outcome(section.name, "skipped", detail=section.missing)
        elif granted < LEAST_SECONDS:
            outcome = Outcome(section.name, "skipped", detail="no time left")
        else:
            outcome = run_section(section, out, granted)
        outcomes.append(outcome)
        detail = f": {outcome.detail}" if outcome.detail else ""
        print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s{detail}", flush=True)
        save(outcomes)
    return outcomes


def run_section(section: Section, out: Path, granted: float) -> Outcome:
    """One section in a process group of its own, ended after ``granted`` seconds."""
    start = time.monotonic()
    log = out / f"{re.sub(r'[^a-z0-9]+', '_', section.name.lower())}.log"
    environment = {k: v for k, v in os.environ.items() if k not in HIDDEN_VARIABLES}
    environment |= {"PYTHONUNBUFFERED": "1", **section.environment}
    status, detail = "ok", ""
    try:
        with log.open("wb") as file, contextlib.ExitStack() as stack:
            helpers = [
                stack.enter_context(_running(script(line), subprocess.DEVNULL, environment))
                for line in section.helpers
            ]
            with _running(section.command(out, granted), file, environment) as process:
                try:
                    if code := process.wait(granted):
                        status, detail = "failed", f"exit code {code}"
                except subprocess.TimeoutExpired:
                    detail = f"after {granted:.0f} s; what it had written counts"
                    status = "timed out"
            for helper in helpers:  # what they have not compiled yet would cost later sections
                with contextlib.suppress(subprocess.TimeoutExpired):
                    helper.wait(max(0.0, granted - (time.monotonic() - start)))
    except Exception as error:
        status, detail = "failed", bench.first_line(error)
    output = log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
    if status == "failed" and (reason := first_failure(output)):
        detail += f"; {reason}"
    return Outcome(section.name, status, time.monotonic() - start, detail, output)


@contextlib.contextmanager
def _running(
    command: list[str], output: IO | int, environment: dict[str, str]
) -> Iterator[subprocess.Popen]:
    """A process whose whole group ends with the block, children that outlived it included."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, **streams
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def default_folder(quick: bool, stage: str | None) -> Path:
    """Where the record goes without ``--out``."""
    if quick:
        return ROOT / "runs" / "gpu_suite_quick"
    kind = f"suite_{stage}" if stage else "suite"
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower().replace("nvidia", ""))
    date = datetime.date.today().isoformat()
    return ROOT / "benchmarks" / "records" / f"{date}_{gpu.strip('-')}_{kind}"


def run(options: Any) -> int:
    """Run the sections and write the record; 1 where one of them failed."""
    if not options.quick and not torch.cuda.is_available():
        raise bench.Failed("no CUDA GPU is visible here; --quick runs what a CPU can of it")
    sections = (quick_sections if options.quick else full_sections)(options.stage)
    sections = [s for s in sections if options.only is None or s.name in options.only]
    out = Path(options.out) if options.out else default_folder(options.quick, options.stage)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.md").touch()
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    stages = [options.stage] if options.stage else [*STAGE_SECONDS]
    limit = options.limit or sum(STAGE_SECONDS[stage] for stage in stages)
    flags = [f"--stage {options.stage}"] * bool(options.stage) + ["--quick"] * options.quick
    command = " ".join(["python benchmarks/gpu_suite.py", *flags])
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu_suite_") as raw:

        def save(outcomes: list[Outcome]) -> str:
            entries, seconds = [asdict(o) for o in outcomes], time.monotonic() - start
            return write_record(out, Path(raw), entries, command, seconds, options.quick)

        outcomes = run_sections(sections, Path(raw), limit, save)
        print(save(outcomes))
    return int(any(outcome.status in ("failed", "timed out") for outcome in outcomes))


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
