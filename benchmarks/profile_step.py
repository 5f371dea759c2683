"""Which kernels a training step spends its time in, by torch.profiler.

    python benchmarks/profile_step.py --batch 64 --inner-epochs 1

Prints the kernels (operators, on the CPU) with the most time of their own, and how much of the
step's wall time the device was busy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from parts import bench
from parts.step.paths import PATHS, load_clips, make_contender
from throughput import make_parser as throughput_parser
from throughput import read_config

from tats_fast.config import ConfigError
from tats_fast.engine.distributed import pick_device

WARMUP = 4


def make_parser() -> bench.Parser:
    """``throughput.py``'s command line, for one path, and the table's length."""
    parser = throughput_parser()
    parser.description = __doc__.splitlines()[0]
    parser.add_argument("--path", default="fast", choices=tuple(PATHS), help="(default: fast)")
    parser.add_argument("--rows", type=bench.positive_int, default=30, help="kernels listed")
    return parser


def kernels_of(profile: Any, device: torch.device) -> list[tuple[str, int, float]]:
    """(name, calls, ms) of what ran, longest first; operators' copies of their kernels' time are
    left out on a GPU."""
    gpu = device.type == "cuda"
    found = []
    for event in profile.key_averages():
        if gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        own = event.self_device_time_total if gpu else event.self_cpu_time_total
        found.append((event.key, event.count, own / 1e3))
    return sorted(found, key=lambda row: -row[2])


def run(options: Any, device: torch.device) -> int:
    """Warm up, time one step, profile one step, print."""
    batch = options.batch or (64 if device.type == "cuda" else 1)
    config = read_config(options, batch)
    clips, source = load_clips(config.model, batch, config.seed)
    contender = make_contender(PATHS[options.path], config, device, clips.to(device))
    for _ in range(WARMUP if options.warmup is None else options.warmup):
        contender.step()
    bench.synchronize(device)
    start = time.perf_counter()
    contender.step()
    bench.synchronize(device)
    wall = 1e3 * (time.perf_counter() - start)
    activity = torch.profiler.ProfilerActivity
    wanted = [activity.CPU, *([activity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=wanted) as profile:
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
    table = [
        [f"{100 * took / busy:.1f}", bench.number(took, 3), str(calls), name[:100]]
        for name, calls, took in rows[: options.rows]
    ]
    print(bench.table(["%", "ms", "calls", "name"], table))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done; 2 wrong use."""
    options = make_parser().parse_intermixed_args(arguments)
    try:
        return run(options, pick_device(options.device))
    except ConfigError as error:
        return bench.fail(str(error), 2)


if __name__ == "__main__":
    sys.exit(main())
