"""Trajectory attention (the whole module) forward and backward, its implementations side by side.

    python benchmarks/trajectory.py --device cpu --widths 384,768

Calls are interleaved in one run. Before anything is timed, output and gradients of every level
must agree with the reference's; exit code 1 names the one that does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import common
import flops
import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.config import ConfigError
from tats_fast.engine.distributed import pick_device
from tats_fast.models.layers import TrajectoryAttention, initialize

HEAD_DIM = 64
OPS = ("trajectory_attention", "trajectory_temporal")
LEVELS = ("reference", "torch", "triton")
# "Speed and memory to reach" on a CPU: forward + backward of the torch level over the reference,
# at 8 x 196 tokens, by width.
TARGETS = {384: 2.5, 768: 1.7}
TARGET_TOKENS = (8, 196)
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest error of output and of each gradient, relative to the reference's largest entry."""


def make_parser() -> common.Parser:
    """The command line."""
    parser = common.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--widths", default="384,768", metavar="C,C", help="multiples of 64 (default: %(default)s)")
    add("--batch", type=common.positive_int, default=1, help="clips")
    add("--frames", type=common.positive_int, default=8, help="token frames F")
    add("--tokens", type=common.positive_int, default=196, help="tokens per frame P")
    add("--steps", type=common.positive_int, default=10, help="timed calls per implementation")
    add("--warmup", type=common.natural_int, default=2, help="untimed rounds")
    add("--precision", default="fp32", choices=tuple(TOLERANCE))
    add("--seed", type=common.natural_int, default=0)
    add("--json", metavar="FILE", help="write the record")
    return parser


def read_widths(text: str) -> list[int]:
    """``"384,768"`` -> [384, 768].

    Raises:
        ConfigError: not positive multiples of the head's 64 channels.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdigit() or int(part) == 0 or int(part) % HEAD_DIM:
            raise ConfigError(f"--widths {part or text!r}: must be a positive multiple of 64")
    return [int(part) for part in parts]


def available_levels(device: torch.device) -> list[str]:
    """Levels that at least one of the two ops has of its own on this device; reference first."""
    found = []
    for level in LEVELS if device.type == "cuda" else LEVELS[:2]:
        with kernels.use(level):
            if any(kernels.resolved_level(op, device.type) == level for op in OPS):
                found.append(level)
    return found


class Case:
    """One width: the module, its input and a random cotangent."""

    def __init__(self, width: int, options: Any, device: torch.device) -> None:
        torch.manual_seed(options.seed)
        module = TrajectoryAttention(width, width // HEAD_DIM, options.frames, "projected")
        initialize(module)
        self.module = module.to(device)
        shape = (options.batch, options.frames * options.tokens, width)
        self.x = torch.randn(shape).to(device).requires_grad_()
        self.cotangent = torch.randn(shape).to(device)
        self._device, self._bf16 = device, options.precision == "bf16"

    def forward(self, level: str) -> Tensor:
        """The module's output at ``level``."""
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)
        with kernels.use(level), autocast:
            return self.module(self.x)

    def forward_only(self, level: str) -> None:
        """Forward without a graph."""
        with torch.no_grad():
            self.forward(level)

    def forward_backward(self, level: str) -> list[Tensor]:
        """Gradients of input and parameters."""
        out = self.forward(level)
        return list(torch.autograd.grad(out, self.inputs(), self.cotangent.to(out.dtype)))

    def inputs(self) -> list[Tensor]:
        """What gradients are taken for."""
        return [self.x, *self.module.parameters()]

    def results(self, level: str) -> dict[str, Tensor]:
        """Output and gradients by name."""
        names = ["x", *(name for name, _ in self.module.named_parameters())]
        gradients = dict(zip(names, self.forward_backward(level), strict=True))
        with torch.no_grad():
            output = self.forward(level)
        return {"output": output, **{f"gradient of {k}": v for k, v in gradients.items()}}


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Largest error over the expected tensor's largest entry, and where it is."""
    errors = {
        name: ((found[name].float() - value.float()).abs().max() / value.float().abs().max()).item()
        for name, value in expected.items()
    }
    # A NaN compares with nothing: it must win.
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    return errors[worst], worst


def measure(width: int, options: Any, device: torch.device) -> dict[str, dict[str, Any]]:
    """Times of every level at one width.

    Raises:
        ArithmeticError: a level that computes something else.
    """
    case, levels = Case(width, options, device), available_levels(device)
    expected = case.results("reference")
    errors = {}
    for level in levels:
        error, where = largest_error(case.results(level), expected)
        if not error <= TOLERANCE[options.precision]:
            raise ArithmeticError(
                f"C={width}, {level} disagrees with reference: {where} by {error:.2g} relative"
            )
        errors[level] = error
    del expected
    entries: dict[str, dict[str, Any]] = {level: {} for level in levels}
    runs: dict[str, Callable[[str], Any]] = {
        "fwd_ms": case.forward_only,
        "fwd_bwd_ms": case.forward_backward,
    }
    for kind, call in runs.items():
        calls = {level: (lambda level=level, call=call: call(level)) for level in levels}
        times = common.interleaved_ms(calls, device, options.steps, options.warmup)
        for level in levels:
            entries[level][kind] = common.percentiles(times[level])
    tokens = options.frames * options.tokens
    module = flops.trajectory_attention(
        tokens, options.frames, width, width // HEAD_DIM, "projected", absorbed=True
    )
    work = flops.TRAINING_FACTOR * options.batch * module
    for level, entry in entries.items():
        entry["tflops"] = work / 1e9 / entry["fwd_bwd_ms"]["p50"]
        entry["max_rel_err"] = errors[level]
        for kind in runs:
            reference = entries["reference"][kind]["p50"]
            entry[f"{kind.removesuffix('_ms')}_ratio"] = reference / entry[kind]["p50"]
    return entries


def result_rows(cases: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """The printed table's cells."""
    return [
        [
            *(case, level, common.number(entry["fwd_ms"]["p50"]), f"{entry['fwd_ratio']:.2f}"),
            *(common.number(entry["fwd_bwd_ms"][p]) for p in ("p20", "p50", "p80")),
            *(f"{entry['fwd_bwd_ratio']:.2f}", f"{entry['tflops']:.3f}"),
            f"{entry['max_rel_err']:.1e}",
        ]
        for case, entries in cases.items()
        for level, entry in entries.items()
    ]


def target_lines(cases: dict[str, Any], options: Any, device: torch.device) -> list[str]:
    """Targets met and missed; they hold for the CPU, fp32 and full-size clips only."""
    grid = (options.frames, options.tokens)
    if device.type != "cpu" or grid != TARGET_TOKENS or options.precision != "fp32":
        return []
    lines = []
    for width, target in TARGETS.items():
        if f"C={width}" in cases:
            ratio = cases[f"C={width}"]["torch"]["fwd_bwd_ratio"]
            verdict = "met" if ratio >= target else "missed"
            lines.append(f"C={width}: forward + backward {ratio:.2f}x, target {target}x: {verdict}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done; 1 a level computes something else; 2 wrong use."""
    options = make_parser().parse_args(arguments)
    try:
        device, widths = pick_device(options.device), read_widths(options.widths)
        problem = common.check_writable(options.json)
        if problem:
            raise ConfigError(problem)
    except ConfigError as error:
        return common.fail(str(error), 2)
    record: dict[str, Any] = {
        "hardware": common.hardware(device),
        "versions": common.versions(),
        "commit": common.git_commit(),
        "config": {**vars(options), "device": device.type, "tolerance": TOLERANCE},
    }
    print(common.hardware_line(record["hardware"]))
    print(
        f"trajectory attention module, B={options.batch}, F={options.frames}, P={options.tokens}, "
        f"heads C/64, {options.precision}, {options.steps} timed calls, {options.warmup} warm-up"
    )
    try:
        cases = {f"C={width}": measure(width, options, device) for width in widths}
    except ArithmeticError as error:
        return common.fail(f"{error} (it was not timed)", 1)
    record["cases"] = cases
    print(
        f"gate passed: output and gradients within {TOLERANCE[options.precision]:g} of the "
        "reference's largest entry\n"
    )
    header = [
        *("case", "level", "fwd ms", "x ref", "fwd+bwd p20", "p50", "p80", "x ref", "TFLOP/s"),
        "max rel err",
    ]
    print(common.table(header, result_rows(cases)))
    for line in target_lines(cases, options, device):
        print(line)
    if options.json:
        common.write_json(options.json, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
