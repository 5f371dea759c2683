"""What the formulas of costs.py and a chip's ceilings allow: PREDICTED, nothing is measured here.

    python benchmarks/predict.py --markdown      # docs/benchmarks.md's "Predicted"
    python benchmarks/predict.py --kernels --update docs/kernels.md       # what kernels execute
    python benchmarks/predict.py --kernels --candidates --op trajectory_temporal

The floor of an op is its roofline time; a step's floor is the sum of its ops' floors. Exponentials,
sorting, launches and the host are not in it, so it is a bound to hold measurements against. The
clips/s at a given MFU count model FLOP (flops.py) against the data sheet's rate, as MFU does.

``--kernels`` executes each Triton kernel's sm_90 code on this machine instead (parts/machine) and
holds what it executed against every unit of the chip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kernel_resources import configuration, kernel_name, launches
from parts import bench, ceilings, costs
from parts.machine import run as machine
from parts.machine.bounded import Bounded, bounded
from parts.machine.run import ARCHITECTURE
from parts.ops.cases import CASES, OPS, RATIO_OPS

from tats_fast.config import load_config
from tats_fast.engine.peak import PEAK_TFLOPS
from tats_fast.kernels.example_inputs import MAKERS, Shape
from tats_fast.pretrain.flops import training_step

MFU_TARGET = 0.4
CLIP_TARGET = 1200
KERNEL_HEADER = (
    "kernel", "configuration", "at once", "issued M", "tensor GFLOP", "special M", "shared MB",
    "conflicts %", "L2 MB", "memory MB", "busiest", "its µs", "H100 µs", "H200 µs",
)  # fmt: skip


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("--chip", default="H200", choices=tuple(ceilings.BANDWIDTH), help="for the ops' table")
    add("--batch", type=bench.positive_int, default=64, help="clips per step (default: 64)")
    add("--markdown", action="store_true", help="tables as docs/benchmarks.md has them")
    add("--kernels", action="store_true", help="what the Triton kernels execute; takes minutes")
    add("--candidates", action="store_true", help="with --kernels: every configuration")
    add(
        "--op",
        nargs="+",
        choices=tuple(MAKERS),
        default=tuple(MAKERS),
        help="with --kernels: these ops only",
    )
    add("--update", metavar="FILE", help="with --kernels: rewrite the table in this Markdown file")
    return parser


def op_rows(chip: str, batch: int) -> list[list[str]]:
    """Floors of every op at ViT-B in bf16."""
    ceiling = ceilings.tabled(chip, "bf16")
    rows = []
    for op in OPS:
        for case in ("vit_b_r95", "vit_b_r85")[: 2 if op in RATIO_OPS else 1]:
            counted = costs.op_costs(op, replace(CASES[case], batch=batch))
            forward, backward = counted.seconds(ceiling)
            bound = {part.flops / ceiling.rate > part.bytes / ceiling.bandwidth
                     for part in counted.forward + counted.backward}  # fmt: skip
            kind = {(True,): "matrix", (False,): "memory"}.get(tuple(bound), "both")
            name = f"{op}, ratio .{case[-2:]}" if op in RATIO_OPS else op
            rows.append(
                [name, bench.number(counted.bytes / 1e6 / batch, 2),
                 bench.number(counted.flops / 1e9 / batch), bench.number(1e6 * forward),
                 bench.number(1e6 * backward), kind]
            )  # fmt: skip
    return rows


def step_rows(batch: int) -> list[list[str]]:
    """The whole step on every chip, K = 1 and 2."""
    rows = []
    for chip in ceilings.BANDWIDTH:
        ceiling = ceilings.tabled(chip, "bf16")
        for epochs in (1, 2):
            config = load_config(overrides=["masking.ratio=0.95", f"ppo.epochs={epochs}"])
            model = config.model
            shape = replace(CASES["vit_b_r95"], batch=batch)
            step = costs.step_costs(shape, model.depth, model.decoder_depth, epochs)
            seconds, work = step.seconds(ceiling), training_step(config)
            peak = PEAK_TFLOPS[chip]["bf16"] * 1e12
            floor = batch / seconds
            rows.append(
                [chip, str(epochs), bench.number(work / 1e9, 0), bench.number(1e3 * seconds),
                 bench.number(floor, 0), bench.number(100 * floor * work / peak),
                 bench.number(MFU_TARGET * peak / work, 0),
                 bench.number(100 * CLIP_TARGET * work / peak)]
            )  # fmt: skip
    return rows


def part_rows(chip: str, batch: int) -> list[list[str]]:
    """Where the floor of a step goes, K = 1."""
    ceiling = ceilings.tabled(chip, "bf16")
    model = load_config().model
    shape = replace(CASES["vit_b_r95"], batch=batch)
    step = costs.step_costs(shape, model.depth, model.decoder_depth, 1)
    total = step.seconds(ceiling)
    seconds = {name: sum(part.seconds(ceiling)) for name, part in step.parts.items()}
    seconds["weight updates"] = step.updates.seconds(ceiling)
    return [
        [name, bench.number(1e3 * value, 2), bench.number(100 * value / total)]
        for name, value in seconds.items()
    ]


def kernel_rows(ops: Sequence[str], batch: int, candidates: bool) -> list[list[str]]:
    """What every kernel executes per clip at ViT-B in bf16, and how long that should take."""
    rows = []
    for op in ops:
        shapes = [replace(Shape(), batch=clips) for clips in (1, 2, 3)]
        recorded = [launches(op, shape, ARCHITECTURE, candidates) for shape in shapes]
        for of_clips in zip(*recorded, strict=True):
            found = bounded(lambda clips, of=of_clips: of[clips - 1], batch)
            rows.append(_kernel_row(found))
    return rows


def _kernel_row(found: Bounded) -> list[str]:
    launch, work = found.launch, found.work
    unit, bound = found.seconds["H100"].busiest
    arguments = launch.arguments  # of the temporal stage's kernels that serve both directions
    backward = arguments.get("BACKWARD", False) or not arguments.get("HAS_BIAS", True)
    direction = ", backward" if backward else ""
    return [
        kernel_name(launch) + direction, configuration(launch), str(found.at_once),
        bench.number(work.issued / 1e6, 2), bench.number((work.wgmma + work.mma) / 1e9, 2),
        bench.number(work.special / 1e6, 2), bench.number(128 * work.shared / 1e6, 1),
        bench.number(100 * work.conflicts / work.shared if work.shared else None, 0),
        bench.number(work.l2 / 1e6, 1), bench.number(work.memory / 1e6, 1), unit,
        bench.number(1e6 * bound, 2),
        *(bench.number(1e6 * s.expected(found.at_once), 2) for s in found.seconds.values()),
    ]  # fmt: skip


def run_kernels(options: Any) -> int:
    """Execute, print and update."""
    if (problem := machine.problem()) is not None:
        raise bench.Failed(problem)
    rows = kernel_rows(options.op, options.batch, options.candidates)
    print(bench.table(KERNEL_HEADER, rows))
    if options.update:
        import triton

        title = f"PREDICTED per clip of a batch of {options.batch}, Triton {triton.__version__}"
        table = f"{title}:\n\n{bench.markdown(KERNEL_HEADER, rows)}"
        bench.put_between(options.update, "kernel_costs", table)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done; 1 nothing to execute kernels with; 2 wrong use."""
    return bench.run_script(make_parser(), run, arguments)


def run(options: Any) -> int:
    """Print the three tables, or the kernels'."""
    if options.kernels:
        return run_kernels(options)
    chip, batch = options.chip, options.batch
    tables = {
        f"PREDICTED floors of the ops, {chip}, bf16, batch {batch}": (
            ["op", "MB/clip", "GFLOP/clip", "forward us", "backward us", "bound by"],
            op_rows(chip, batch),
        ),
        f"PREDICTED whole step, ViT-B 16 x 224, ratio .95, bf16, batch {batch}": (
            ["chip", "K", "GFLOP/clip", "floor ms", "clips/s at the floor", "MFU % there",
             f"clips/s at {MFU_TARGET:.0%} MFU", f"MFU % at {CLIP_TARGET:,} clips/s"],
            step_rows(batch),
        ),
        f"PREDICTED parts of that floor, {chip}, K = 1": (
            ["part", "ms", "%"],
            part_rows(chip, batch),
        ),
    }  # fmt: skip
    show = bench.markdown if options.markdown else bench.table
    for title, (header, rows) in tables.items():
        print(f"{'**' * options.markdown}{title}{'**' * options.markdown}\n")
        print(show(header, rows) + "\n")
    for name in ceilings.BANDWIDTH:
        top = ceilings.tabled(name, "bf16")
        print(f"{top.source}: {top.bandwidth / 1e12:g} TB/s, {top.rate / 1e12:g} TFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
