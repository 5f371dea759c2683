"""What bf16 and kept memory do to a training step on a CPU, each alone and both together.

    python benchmarks/cpu_levers.py --batch 2 --inner-epochs 1 --rounds 3

Every case is a process of its own, because malloc's settings are the process's; cases take turns.
CPU seconds stand beside wall time: other work on the machine stretches the second far more.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from parts import ROOT, bench
from parts.step.paths import PATHS, load_clips, make_contender
from throughput import add_step_options, read_config

from tats_fast.config import ConfigError
from tats_fast.data.workers.progress import JobProgress
from tats_fast.engine import runner

CASES = ("fp32", "fp32 kept", "bf16", "bf16 kept")
"""Precision, and whether freed memory is kept (``engine/host_memory.py``)."""


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add_step_options(parser)
    parser.set_defaults(device="cpu", batch=1)
    add = parser.add_argument
    add("--steps", type=bench.positive_int, default=3, help="timed steps per process")
    add("--rounds", type=bench.positive_int, default=3, help="processes per case")
    add("--json", metavar="FILE", help="write the record")
    add("--case", choices=CASES, help="measure this one here and print a line of JSON")
    return parser


def measure(options: Any) -> dict[str, float]:
    """Medians over the steps of this process; ``faults`` are pages that the system mapped."""
    options.precision, *kept = options.case.split()
    config = read_config(options, options.batch)
    clips, _ = load_clips(config.model, options.batch, config.seed)
    device = torch.device("cpu")
    with malloc(kept):
        contender = make_contender(PATHS["fast"], config, device, clips)
    contender.step()
    steps = []
    for _ in range(options.steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        wall, cpu = time.perf_counter(), time.process_time()
        loss = contender.step()["loss_recon"].item()
        spent = (1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu))
        steps.append((*spent, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
    wall, cpu, faults = map(median, zip(*steps, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_ms": cpu, "wall_ms": wall, "faults": faults, "peak_mib": peak, "loss": loss}


def malloc(kept: list[str]) -> Any:
    """Around the making of a learner: its malloc stays as it is, unless ``kept``."""
    name = "keep_freed_memory"
    return mock.patch.object(runner, name, getattr(runner, name) if kept else lambda: False)


def run(options: Any) -> int:
    """Every case in turn; prints a table."""
    if options.case is not None:
        print(json.dumps(measure(options)))
        return 0
    if (options.device, options.precision) != ("cpu", "auto"):
        raise ConfigError("--device, --precision: every case sets its own, on the CPU")
    read_config(options, options.batch)  # complains before anything runs
    record = bench.new_record(torch.device("cpu"))
    print("\n".join(bench.provenance(record, "torch")), flush=True)
    rows: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    turns = list(CASES) * options.rounds
    with JobProgress("turns", len(turns), sparse=True) as progress:
        for case in turns:
            command = [sys.executable, __file__, *sys.argv[1:], "--case", case]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                raise bench.Failed(f"{case}: {bench.reason(done.stderr)}")
            rows[case].append(json.loads(done.stdout.splitlines()[-1]))
            progress.step()
    record["config"] = {"command": " ".join(sys.argv), "steps": options.steps}
    record["cases"] = rows
    medians = {
        case: {key: median(row[key] for row in measured) for key in measured[0]}
        for case, measured in rows.items()
    }
    keys = ("cpu_ms", "wall_ms", "faults", "peak_mib")
    table = []
    for case, values in medians.items():
        ratio = medians["fp32"]["cpu_ms"] / values["cpu_ms"]
        cells = (bench.number(values[key], 0) for key in keys)
        table.append([case, *cells, bench.number(ratio, 2), bench.number(values["loss"], 5)])
    header = ["case", "CPU ms", "wall ms", "page faults", "peak MiB", "x fp32 (CPU)", "loss"]
    print(bench.table(header, table))
    if options.json is not None:
        bench.write_json(options.json, record)
    return 0


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
