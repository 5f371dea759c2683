"""Every hot op in every implementation side by side: forward, backward, both; against the roofline.

    python benchmarks/ops.py --device cpu --json ops.json --plot ops.png

An implementation is timed only if its outputs and every gradient are right (gate.py); exit
code 1 names the one that is not. Calls are interleaved. GB/s, TFLOP/s and the roofline are those of
forward + backward, from the counted floor of costs.py: ``roofline`` 0.5 = twice the floor's time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from parts import bench, ceilings, costs
from parts.ceilings import DTYPES
from parts.isolate import is_cuda_error
from parts.ops.cases import CASES, DEFAULT_CASES, IMPLEMENTATIONS, OPS, Problem, cases_of, why_not
from parts.ops.gate import Gate, WrongResult
from parts.ops.isolated import measure_isolated
from parts.ops.report import ceilings_line, describe, results, target_lines
from parts.ops.timing import interleaved_ms
from parts.peak_memory import MIB, peak_growth
from plots import save
from torch import Tensor

from tats_fast.engine.distributed import pick_device

Runner = Callable[[], tuple[Tensor, ...]]


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument

    def add_names(option: str, dest: str, known: Sequence[str], default: Sequence[str]) -> None:
        usual = ",".join(default) if len(default) < len(known) else "all"
        text = f"of {', '.join(known)} (default: {usual})"
        names = bench.names_of(known)
        add(option, dest=dest, metavar="A,B", type=names, default=default, help=text)

    add_names("--op", "ops", OPS, OPS)
    add_names("--case", "cases", tuple(CASES), DEFAULT_CASES)
    add_names("--impl", "implementations", IMPLEMENTATIONS, IMPLEMENTATIONS)
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--dtype", choices=tuple(DTYPES), help="default: fp32; bf16 on a GPU")
    add("--batch", type=bench.positive_int, help="clips (default: 1; 32 on a GPU)")
    add("--steps", type=bench.positive_int, help="timed calls (default: 10; 20 on a GPU)")
    add("--warmup", type=bench.natural_int, default=3, help="untimed rounds")
    add("--seed", type=bench.natural_int, default=0)
    add("--keep-going", action="store_true", help="record an implementation that is wrong or "
        "fails, go on, and exit with 1 in the end")  # fmt: skip
    alone = "seconds for processes of their own, so that a CUDA error ends one implementation"
    add("--isolate", type=bench.positive_float, metavar="SECONDS", help=alone)
    add("--json", metavar="FILE", help="write the record, after every op")
    add("--plot", metavar="FILE.png", help="draw speed-ups over the reference")
    return parser


class LostContext(bench.Failed):
    """An implementation's CUDA error, after which nothing runs in this process."""

    def __init__(self, implementation: str, reason: str) -> None:
        super().__init__(f"{implementation}: {reason}")
        self.implementation, self.reason = implementation, reason


class Measurement:
    """One op at one shape: gate, times, memory."""

    def __init__(self, op: str, case: str, options: Any, device: torch.device) -> None:
        self.op, self._options, self._device = op, options, device
        shape = replace(CASES[case], batch=options.batch, dtype=DTYPES[options.dtype])
        self.problem = Problem(op, shape, device, options.seed)
        self.costs = costs.op_costs(op, shape)
        self.others: dict[str, dict[str, str]] = {}
        """Implementations that do not run, each with {"skipped" or "failed": why}."""
        self._leaves = list(self.problem.leaves().values())
        self._seeds: list[Tensor] = []
        self._runners: dict[str, Runner] = {}
        self._errors: dict[str, float] = {}

    def admit(self, implementations: Sequence[str]) -> None:
        """Let each implementation pass the gate.

        Raises:
            WrongResult: one does not, and nobody said ``--keep-going``.
        """
        gate = Gate(self.problem)
        for name in implementations:
            reason = why_not(self.op, name, self._device.type)
            try:
                if reason is None:
                    reason = self._enter(name, gate)
            except Exception as error:
                if is_cuda_error(error):
                    raise LostContext(name, bench.first_line(error)) from error
                if not self._options.keep_going:
                    raise
                self.others[name] = {"failed": bench.first_line(error)}
            if reason is not None:
                self.others[name] = {"skipped": reason}

    def _enter(self, name: str, gate: Gate) -> str | None:
        """Gate one implementation; why it is skipped."""
        try:
            runner = self.problem.runner(name)
            self._errors[name] = gate.check(runner, judge=name != "reference")
            if not self._seeds:
                self._seeds = [torch.randn_like(out) for out in _differentiable(runner())]
        except WrongResult as wrong:
            raise WrongResult(f"{name} disagrees with the reference: {wrong}") from None
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return f"out of GPU memory at batch {self._options.batch}"
        except Exception as error:
            if not name.endswith("compiled") or is_cuda_error(error):
                raise
            return f"torch.compile failed: {bench.first_line(error)}"
        self._runners[name] = runner
        return None

    def _backward(self, outputs: tuple[Tensor, ...], keep: bool) -> None:
        if self._leaves:  # an op may have no gradient
            # An op may overwrite the gradient it is given, as nothing else holds that in a step.
            seeds = [seed.clone() for seed in self._seeds]
            torch.autograd.grad(_differentiable(outputs), self._leaves, seeds, keep)

    def _both(self, runner: Runner) -> None:
        self._backward(runner(), keep=False)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The record's entries of the implementations that ran, and of those that did not;
        ``roofline`` is for ``settle`` to fill in."""
        runners, times = self._runners, {}
        times["fwd_ms"] = self._time(runners)
        both = {name: partial(self._both, runner) for name, runner in runners.items()}
        times["fwd_bwd_ms"] = self._time(both)
        times["bwd_ms"] = self._backward_alone()
        entries: dict[str, dict[str, Any]] = {}
        for name, call in both.items():
            seconds = times["fwd_bwd_ms"][name]["p50"] / 1e3
            grown = peak_growth(call, self._device)
            entries[name] = {
                **{kind: times[kind][name] for kind in ("fwd_ms", "bwd_ms", "fwd_bwd_ms")},
                "peak_mem_mb": None if grown is None else grown / MIB,
                "gbps": self.costs.bytes / 1e9 / seconds,
                "tflops": self.costs.flops / 1e12 / seconds if self.costs.flops else None,
                "roofline": None,
                "max_rel_err": self._errors[name],
            }
        return entries | self.others

    def _backward_alone(self) -> dict[str, dict[str, float] | None]:
        """Times of the backward pass; None each where not all graphs fit beside one another."""
        try:
            made = self._runners.items()
            return self._time({n: partial(self._backward, run(), keep=True) for n, run in made})
        except torch.OutOfMemoryError:
            return dict.fromkeys(self._runners)

    def _time(self, calls: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
        steps, warmup = self._options.steps, self._options.warmup
        times = interleaved_ms(calls, self._device, steps, warmup)
        return {name: bench.percentiles(values) for name, values in times.items()}


def _differentiable(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [out for out in outputs if out.requires_grad]


def measure(record: dict[str, Any], options: Any, device: torch.device) -> bool:
    """Fill ``record`` op by op, writing it after each; whether everything was right.

    Raises:
        bench.Failed: an implementation computes something else; names op, case and implementation.
    """
    right = True
    counted: dict[tuple[str, str], costs.Costs] = {}
    for op in options.ops:
        record["ops"][op], record["floors"][op] = {}, {}
        for case in cases_of(op, options.cases):
            measured = Measurement(op, case, options, device)
            try:
                measured.admit(options.implementations)
            except WrongResult as wrong:
                raise bench.Failed(f"{op}, {case}: {wrong} (it was not timed)") from None
            except LostContext as lost:
                record["ops"][op][case] = {lost.implementation: {"failed": lost.reason}}
                record["floors"][op] = {}  # it is not finished
                record["lost"] = {"op": op, "implementation": lost.implementation}
                write(record, options)
                hint = "--isolate lets the others run"
                raise bench.Failed(f"{op}, {case}, {lost}; {hint}") from None
            right &= not any("failed" in other for other in measured.others.values())
            counted[op, case] = measured.costs
            record["ops"][op][case] = measured.entries()
            del measured
            torch.compiler.reset()  # compiled functions of one case are of no use to the next
            if device.type == "cuda":
                torch.cuda.empty_cache()
        settle(record, counted, ceilings.ceilings(device, DTYPES[options.dtype]))
        write(record, options)
        print(results(record, op) + "\n", flush=True)
    return right


def write(record: dict[str, Any], options: Any) -> None:
    """To ``--json``, if given."""
    if options.json:
        bench.write_json(options.json, record)


def settle(
    record: dict[str, Any], counted: dict[tuple[str, str], costs.Costs], latest: costs.Ceilings
) -> None:
    """Floors and rooflines of everything measured so far, against the best ceilings seen."""
    ceiling = ceilings.better(costs.Ceilings(**record["config"]["ceilings"]), latest)
    record["config"]["ceilings"] = ceiling._asdict()
    for (op, case), work in counted.items():
        forward, backward = work.seconds(ceiling)
        record["floors"][op][case] = {
            **{"fwd_ms": 1e3 * forward, "bwd_ms": 1e3 * backward},
            **{"mb": work.bytes / 1e6, "gflop": work.flops / 1e9},
        }
        for entry in record["ops"][op][case].values():
            if "roofline" in entry:
                entry["roofline"] = 1e3 * (forward + backward) / entry["fwd_bwd_ms"]["p50"]


def run(options: Any) -> int:
    """Settle what depends on the device, then measure; 1 if anything was wrong."""
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    options.dtype = options.dtype or ("bf16" if gpu else "fp32")
    options.batch = options.batch or (32 if gpu else 1)
    options.steps = options.steps or (20 if gpu else 10)
    if "reference" not in options.implementations:
        options.implementations = ("reference", *options.implementations)
    settings = ("ops", "cases", "implementations", "dtype", "batch", "steps", "warmup", "seed")
    record = bench.new_record(device)
    sheet = ceilings.data_sheet(device, DTYPES[options.dtype])
    record["config"] = {
        **{name: getattr(options, name) for name in settings},
        "device": device.type,
        "ceilings": ceilings.ceilings(device, DTYPES[options.dtype])._asdict(),
        "data_sheet": sheet and sheet._asdict(),
    }
    record |= {"ops": {}, "floors": {}}
    print(describe(record) + "\n", flush=True)
    if options.isolate:
        right, first = measure_isolated(record, options, partial(write, record, options))
        if first:
            print(f"first failure: {first}")
    else:
        right = measure(record, options, device)
    for line in (ceilings_line(record), *target_lines(record)):
        print(line)
    save(record, options)
    return 0 if right else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done; 1 an implementation computes something else; 2 wrong use."""
    return bench.run_script(make_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
