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
from typing import Any

import torch
from parts import bench, ceilings, costs
from parts.ops.cases import CASES, DEFAULT_CASES, IMPLEMENTATIONS, OPS, Problem, cases_of, why_not
from parts.ops.gate import Gate, WrongResult
from parts.ops.report import ceilings_line, describe, results, target_lines
from parts.ops.timing import interleaved_ms
from parts.peak_memory import MIB, peak_growth
from plots import draw_ops, outputs_problem
from torch import Tensor

from tats_fast.config import ConfigError
from tats_fast.engine.distributed import pick_device

Runner = Callable[[], tuple[Tensor, ...]]
DTYPES = {name: dtype for dtype, name in ceilings.NAMES.items()}


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--op", metavar="A,B", help=f"of {', '.join(OPS)} (default: all)")
    add("--case", metavar="A,B", help=f"of {', '.join(CASES)} (default: {','.join(DEFAULT_CASES)})")
    add("--impl", metavar="A,B", help=f"of {', '.join(IMPLEMENTATIONS)} (default: all that run)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--dtype", choices=tuple(DTYPES), help="default: fp32; bf16 on a GPU")
    add("--batch", type=bench.positive_int, help="clips (default: 1; 32 on a GPU)")
    add("--steps", type=bench.positive_int, help="timed calls (default: 10; 20 on a GPU)")
    add("--warmup", type=bench.natural_int, default=3, help="untimed rounds")
    add("--seed", type=bench.natural_int, default=0)
    add("--keep-going", action="store_true", help="record an implementation that is wrong or "
        "fails, go on, and exit with 1 in the end")  # fmt: skip
    add("--json", metavar="FILE", help="write the record, after every op")
    add("--plot", metavar="FILE.png", help="draw speed-ups over the reference")
    return parser


def chosen(option: str, text: str | None, known: Sequence[str], default: Sequence[str]) -> tuple:
    """``"a,b"`` in ``known``'s order.

    Raises:
        ConfigError: an unknown name.
    """
    if text is None:
        return tuple(default)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"{option} {name}: must be of {', '.join(known)}")
    return tuple(name for name in known if name in names)


class Measurement:
    """One op at one shape: gate, times, memory."""

    def __init__(self, op: str, case: str, options: Any, device: torch.device) -> None:
        self.op, self._options, self._device = op, options, device
        shape = replace(CASES[case], batch=options.batch, dtype=DTYPES[options.dtype])
        self.problem = Problem(op, shape, device, options.seed)
        self.costs = costs.op_costs(op, shape)
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}
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
                if not self._options.keep_going:
                    raise
                self.failed[name] = bench.first_line(error)
            if reason is not None:
                self.skipped[name] = reason

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
            if not name.endswith("compiled"):
                raise
            return f"torch.compile failed: {bench.first_line(error)}"
        self._runners[name] = runner
        return None

    def _backward(self, outputs: tuple[Tensor, ...], keep: bool) -> None:
        torch.autograd.grad(_differentiable(outputs), self._leaves, self._seeds, keep)

    def _both(self, runner: Runner) -> None:
        self._backward(runner(), keep=False)

    def entries(self) -> dict[str, dict[str, Any]]:
        """The record's entries of the implementations that ran, and of those that did not;
        ``roofline`` is for ``settle`` to fill in."""
        runners, times = self._runners, {}
        times["fwd_ms"] = self._time(runners)
        times["fwd_bwd_ms"] = self._time(
            {name: (lambda run=run: self._both(run)) for name, run in runners.items()}
        )
        kept = {name: run() for name, run in runners.items()}
        times["bwd_ms"] = self._time(
            {name: (lambda out=out: self._backward(out, keep=True)) for name, out in kept.items()}
        )
        kept.clear()
        found: dict[str, dict[str, Any]] = {}
        for name, runner in runners.items():
            seconds = times["fwd_bwd_ms"][name]["p50"] / 1e3
            grown = peak_growth(lambda run=runner: self._both(run), self._device)
            found[name] = {
                **{kind: times[kind][name] for kind in ("fwd_ms", "bwd_ms", "fwd_bwd_ms")},
                "peak_mem_mb": None if grown is None else grown / MIB,
                "gbps": self.costs.bytes / 1e9 / seconds,
                "tflops": self.costs.flops / 1e12 / seconds if self.costs.flops else None,
                "roofline": None,
                "max_rel_err": self._errors[name],
            }
        found |= {name: {"failed": why} for name, why in self.failed.items()}
        return found | {name: {"skipped": why} for name, why in self.skipped.items()}

    def _time(self, calls: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
        steps, warmup = self._options.steps, self._options.warmup
        times = interleaved_ms(calls, self._device, steps, warmup)
        return {name: bench.percentiles(values) for name, values in times.items()}


def _differentiable(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [out for out in outputs if out.requires_grad]


def measure(record: dict[str, Any], options: Any, device: torch.device) -> bool:
    """Fill ``record`` op by op, writing it after each; whether everything was right.

    Raises:
        WrongResult: one sentence that names op, case and implementation.
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
                raise WrongResult(f"{op}, {case}: {wrong}") from None
            right &= not measured.failed
            counted[op, case] = measured.costs
            record["ops"][op][case] = measured.entries()
            del measured
            torch.compiler.reset()  # compiled functions of one case are of no use to the next
            if device.type == "cuda":
                torch.cuda.empty_cache()
        settle(record, counted, ceilings.ceilings(device, DTYPES[options.dtype]))
        print(results(record, op) + "\n", flush=True)
        if options.json:
            bench.write_json(options.json, record)
    return right


def settle(
    record: dict[str, Any], counted: dict[tuple[str, str], costs.Costs], found: costs.Ceilings
) -> None:
    """Floors and rooflines of everything measured so far, against the best ceilings seen."""
    ceiling = ceilings.better(costs.Ceilings(**record["config"]["ceilings"]), found)
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


def fill_defaults(options: Any, device: torch.device) -> None:
    """Settle what depends on the device.

    Raises:
        ConfigError: an unknown name, or a file that cannot be written.
    """
    gpu = device.type == "cuda"
    options.dtype = options.dtype or ("bf16" if gpu else "fp32")
    options.batch = options.batch or (32 if gpu else 1)
    options.steps = options.steps or (20 if gpu else 10)
    options.ops = chosen("--op", options.op, OPS, OPS)
    options.cases = chosen("--case", options.case, tuple(CASES), DEFAULT_CASES)
    options.implementations = chosen("--impl", options.impl, IMPLEMENTATIONS, IMPLEMENTATIONS)
    if "reference" not in options.implementations:
        options.implementations = ("reference", *options.implementations)
    problem = outputs_problem(options.json, options.plot)
    if problem:
        raise ConfigError(problem)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done; 1 an implementation computes something else; 2 wrong use."""
    options = make_parser().parse_args(arguments)
    try:
        device = pick_device(options.device)
        fill_defaults(options, device)
    except ConfigError as error:
        return bench.fail(str(error), 2)
    settings = ("ops", "cases", "implementations", "dtype", "batch", "steps", "warmup", "seed")
    record: dict[str, Any] = {
        "hardware": bench.hardware(device),
        "versions": bench.versions(),
        "commit": bench.git_commit(),
        "config": {
            **{name: getattr(options, name) for name in settings},
            "device": device.type,
            "ceilings": ceilings.ceilings(device, DTYPES[options.dtype])._asdict(),
        },
        "ops": {},
        "floors": {},
    }
    print(describe(record) + "\n", flush=True)
    try:
        right = measure(record, options, device)
    except WrongResult as wrong:
        return bench.fail(f"{wrong} (it was not timed)", 1)
    for line in (ceilings_line(record), *target_lines(record)):
        print(line)
    if options.plot:
        draw_ops(record, options.plot)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
