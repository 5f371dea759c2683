"""Which kernels a training step spends its time in, by torch.profiler.

    python benchmarks/profile_step.py --batch 64 --inner-epochs 1

Prints how much of the step's wall time the device was busy, the time by kind of work, and the
kernels (operators, on the CPU) with the most time of their own.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from parts import bench
from parts.step.paths import PATHS, load_clips, make_contender
from throughput import add_step_options, read_config

from tats_fast.engine.distributed import pick_device

KINDS = {
    "our kernels": "^_[a-z_]+_kernel$",
    "matrix products": "nvjet|gemm|cutlass|splitK|::(add|b|baddb)?mm|linear",
    "attention": "cudnn|flash|fmha|attention",
    "optimizer": "multi_tensor|[aA]dam",
}
"""Patterns of names, the first that fits; everything else passes over elements."""
ELEMENTWISE = "elementwise and reductions"
WRAPPERS = re.compile("^Optimizer[.]")
"""Records around kernels that are listed themselves."""


def kind_of(name: str) -> str:
    """The kind of work that a kernel or operator does."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name))
    return next(found, ELEMENTWISE)


def by_kind(rows: list[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    """(kind, calls, ms) of what ``kernels_of`` found, longest first."""
    calls, times = defaultdict(int), defaultdict(float)
    for name, count, took in rows:
        calls[kind_of(name)] += count
        times[kind_of(name)] += took
    return [(kind, calls[kind], times[kind]) for kind in sorted(times, key=times.get, reverse=True)]


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add_step_options(parser)
    add = parser.add_argument
    add("--warmup", type=bench.natural_int, default=4, help="steps before (default: %(default)s)")
    add("--path", default="fast", choices=tuple(PATHS), help="(default: fast)")
    add("--rows", type=bench.positive_int, default=30, help="kernels listed")
    return parser


def kernels_of(profile: Any, device: torch.device) -> list[tuple[str, int, float]]:
    """(name, calls, ms) of what ran, longest first; operators' copies of their kernels' time are
    left out on a GPU."""
    gpu, cuda = device.type == "cuda", torch.autograd.DeviceType.CUDA
    own = attrgetter("self_device_time_total" if gpu else "self_cpu_time_total")
    events = [e for e in profile.key_averages() if not gpu or e.device_type == cuda]
    events = [e for e in events if not WRAPPERS.match(e.key)]
    return [(e.key, e.count, own(e) / 1e3) for e in sorted(events, key=own, reverse=True)]


def run(options: Any) -> int:
    """Warm up, time one step, profile one step, print."""
    device = pick_device(options.device)
    batch = options.batch or (64 if device.type == "cuda" else 1)
    config = read_config(options, batch)
    clips, source = load_clips(config.model, batch, config.seed)
    contender = make_contender(PATHS[options.path], config, device, clips.to(device))
    (wall,) = bench.interleaved_ms({"step": contender.step}, device, 1, options.warmup)["step"]
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, *([activity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profile:
        contender.step()
        bench.synchronize(device)
    rows = kernels_of(profile, device)
    busy = sum(row[2] for row in rows)
    print(bench.hardware_line(bench.hardware(device)))
    print(
        f"path {options.path}, {config.model.preset}, batch {batch}, K={config.ppo.epochs}, "
        f"{source}"
    )
    print(
        f"step {wall:.2f} ms; {sum(row[1] for row in rows)} calls with {busy:.2f} ms of their own "
        f"in the profiled step ({100 * busy / wall:.0f}% of the unprofiled one)\n"
    )
    for shown in (by_kind(rows), rows[: options.rows]):
        table = [
            [f"{100 * took / busy:.1f}", bench.number(took, 3), str(calls), name[:100]]
            for name, calls, took in shown
        ]
        print(bench.table(["%", "ms", "calls", "name"], table) + "\n")
    return 0


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
