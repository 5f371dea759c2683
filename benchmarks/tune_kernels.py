"""Time every candidate configuration of every Triton kernel; the fastest beside the chosen.

    python benchmarks/tune_kernels.py --json tuning.json      # needs a CUDA GPU

Candidates are compiled first, by several processes into Triton's cache on disk; then each runs its
op at ViT-B, gated like ops.py. Results are written after every kernel, so a time limit loses only
what was not measured yet. The choice stays a table in the kernel's file: this says what to put in.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import kernel_resources
import torch
from parts import bench
from parts.ceilings import DTYPES
from parts.ops.cases import CASES, Problem
from parts.ops.gate import Gate, WrongResult
from parts.ops.timing import interleaved_ms

from tats_fast.kernels import dispatch

WARMERS = 8


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("--batch", type=bench.positive_int, default=32)
    add("--case", default="vit_b_r95", choices=tuple(CASES))
    add("--dtype", default="bf16", choices=tuple(DTYPES))
    add("--steps", type=bench.positive_int, default=10, help="timed calls per candidate")
    add("--limit", type=bench.positive_float, default=600.0, help="seconds")
    add("--json", metavar="FILE", help="write the record")
    add("--warm", nargs=2, type=int, metavar=("I", "N"), help="used by this script on itself")
    return parser


def tunables() -> list[tuple[Any, tuple[str, ...]]]:
    """``kernel_resources.tunables``, those that take most of a step's time first."""
    return sorted(kernel_resources.tunables(), key=lambda pair: "trajectory" not in pair[0].name)


class Bench:
    """One op's problem, its gate and calls under a forced configuration."""

    def __init__(self, op: str, options: Any, batch: int, device: torch.device) -> None:
        shape = replace(CASES[options.case], batch=batch, dtype=DTYPES[options.dtype])
        self.problem = Problem(op, shape, device, seed=0)
        self._run = self.problem.runner("triton")
        self._leaves = list(self.problem.leaves().values())
        self._gate: Gate | None = None

    def check(self) -> None:
        """Raises ``WrongResult``."""
        self._gate = self._gate or Gate(self.problem)
        self._gate.check(self._run)

    def both(self) -> None:
        """Forward and backward."""
        outputs = [out for out in self._run() if out.requires_grad]
        torch.autograd.grad(outputs, self._leaves, [torch.ones_like(out) for out in outputs])


def forcing(name: str, candidate: Any, call: Callable[[], None]) -> Callable[[], None]:
    """``call`` with the tunable's configuration forced."""
    from tats_fast.kernels.fused.launch import forced

    return forced(name, candidate)(call)


def warm(options: Any, device: torch.device) -> None:
    """Compile this process's share of the candidates by running them once."""
    index, count = options.warm
    pairs = [(t, c, ops) for t, ops in tunables() if len(t.candidates) > 1 for c in t.candidates]
    for tunable, candidate, ops in pairs[index::count]:
        for op in ops:
            with contextlib.suppress(Exception):  # the measurement itself will name it
                forcing(tunable.name, candidate, Bench(op, options, options.batch, device).both)()


def warm_all(options: Any, deadline: float) -> None:
    """Run the compiling processes until they end or a third of the time is gone."""
    count = min(WARMERS, max(1, (os.cpu_count() or 2) // 2))
    command = [sys.executable, __file__, "--batch", str(options.batch), "--case", options.case]
    command += ["--dtype", options.dtype]
    started = [
        subprocess.Popen([*command, "--warm", str(index), str(count)], stderr=subprocess.DEVNULL)
        for index in range(count)
    ]
    until = time.monotonic() + (deadline - time.monotonic()) / 3
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        if process.poll() is None:
            process.kill()
        process.wait()


def measure(
    tunable: Any, benches: dict[str, Bench], steps: int, device: torch.device
) -> dict[str, Any]:
    """Medians of forward + backward of every right candidate, ms, summed over the file's ops."""
    entries: dict[str, dict[str, Any]] = {}
    for candidate in tunable.candidates:
        entry: dict[str, Any] = {}
        for op, trial in benches.items():
            try:
                forcing(tunable.name, candidate, trial.check)()
            except WrongResult as wrong:
                entry["problem"] = f"{op}: wrong: {wrong}"
            except Exception as error:
                entry["problem"] = f"{op}: {bench.first_line(error)}"
        entries[str(candidate)] = entry
    right = [c for c in tunable.candidates if "problem" not in entries[str(c)]]
    for op, trial in benches.items():
        calls = {str(c): forcing(tunable.name, c, trial.both) for c in right}
        for name, times in interleaved_ms(calls, device, steps, 2).items():
            entries[name][f"{op}_ms"] = bench.percentiles(times)["p50"]
    for candidate in right:
        entry = entries[str(candidate)]
        entry["total_ms"] = sum(value for key, value in entry.items() if key.endswith("_ms"))
    timed = {name: entry["total_ms"] for name, entry in entries.items() if "total_ms" in entry}
    chosen = str(tunable.config(device))
    fastest = min(timed, key=timed.get, default=None)
    gain = timed[chosen] / timed[fastest] if fastest is not None and chosen in timed else None
    return {"chosen": chosen, "fastest": fastest, "gain": gain, "candidates": entries}


def run(options: Any) -> int:
    """Everything within the limit; the exit code."""
    problem = dispatch.triton_problem("cuda")
    if problem is None and not torch.cuda.is_available():
        problem = "no CUDA GPU is visible here, and Triton kernels run on nothing else"
    if problem is not None:
        raise bench.Failed(problem)
    device = torch.device("cuda")
    if options.warm:
        warm(options, device)
        return 0
    deadline = time.monotonic() + options.limit
    record = bench.new_record(device)
    record["config"] = {key: getattr(options, key) for key in ("case", "batch", "dtype", "steps")}
    record["tunables"] = {}
    warm_all(options, deadline)
    rows, longest = [], 0.0
    benches: dict[str, Bench] = {}
    for tunable, ops in tunables():
        if len(tunable.candidates) < 2:
            continue
        start = time.monotonic()
        if start + longest > deadline:
            record["tunables"][tunable.name] = {"skipped": "no time left"}
            continue
        for op in [op for op in benches if op not in ops]:
            del benches[op]
        for op in ops:
            if op not in benches:
                benches[op] = Bench(op, options, options.batch, device)
        result = measure(tunable, benches, options.steps, device)
        record["tunables"][tunable.name] = result
        if options.json:
            bench.write_json(options.json, record)
        gain = bench.number(result["gain"], 3)
        rows.append([tunable.name, result["chosen"], result["fastest"] or "none ran", gain])
        longest = max(longest, time.monotonic() - start)
    print(bench.table(["kernel", "chosen", "fastest", "chosen / fastest"], rows))
    for name, result in record["tunables"].items():
        if "skipped" in result:
            print(f"{name}: {result['skipped']}")
        for config, entry in result.get("candidates", {}).items():
            if "problem" in entry:
                print(f"{name} {config}: {entry['problem']}")
    if options.json:
        bench.write_json(options.json, record)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 measured; 1 nothing to measure on; 2 wrong use."""
    return bench.run_script(make_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
