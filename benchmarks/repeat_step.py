"""Whether a training step gives the same bits twice: the same start, clips and draws, two learners.

    python benchmarks/repeat_step.py --batch 64 --inner-epochs 1 --paths fast,fast_eager

Compares the losses of the first steps and every parameter after them, bit for bit, and says where
they differ first. A step that differs is no failure: some library kernels add in any order.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from parts import bench
from parts.isolate import is_cuda_error
from parts.step.paths import PATHS, load_clips, make_contender
from throughput import add_step_options, read_config

from tats_fast.engine.distributed import pick_device

STEPS = 3


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add_step_options(parser)
    paths = tuple(name for name, path in PATHS.items() if not (path.peer or path.graph))
    add = parser.add_argument
    add("--paths", type=bench.names_of(paths), default=("fast",), metavar="A,B")
    add("--json", metavar="FILE", help="write the record, after every path")
    return parser


def outcome(name: str, config: Any, device: torch.device, clips: torch.Tensor) -> dict[str, Any]:
    """Losses of every step and parameters after the last, by name, on the CPU."""
    contender = make_contender(PATHS[name], config, device, clips)
    values: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        metrics = contender.step()
        losses = {key: value for key, value in metrics.items() if key.startswith("loss_")}
        values |= {f"step {step}: {key}": value.cpu() for key, value in losses.items()}
    for part, state in contender.learner.model_state().items():
        values |= {f"{part}.{key}": value.cpu() for key, value in (state or {}).items()}
    return values


def compare(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, Any]:
    """How many of the compared tensors differ in a bit, the first of them, and the largest
    difference relative to its tensor's largest entry."""
    differing = [key for key, value in one.items() if not torch.equal(value, other[key])]
    sizes = (
        (one[key].double() - other[key].double()).abs().max().item()
        / max(one[key].double().abs().max().item(), 1e-30)
        for key in differing
    )
    return {
        "compared": len(one),
        "differing": len(differing),
        "first": next(iter(differing), None),
        "largest": max(sizes, default=0.0),
    }


def run(options: Any) -> int:
    """Every path twice."""
    device = pick_device(options.device)
    batch = options.batch or (64 if device.type == "cuda" else 1)
    config = read_config(options, batch)
    clips, source = load_clips(config.model, batch, config.seed)
    clips = clips.to(device)
    record = bench.new_record(device)
    record["config"] = {"batch": batch, "steps": STEPS, "clips": source}
    record["repeat"] = {}
    print(bench.hardware_line(record["hardware"]))
    for name in options.paths:
        try:
            first, second = (outcome(name, config, device, clips) for _ in range(2))
        except Exception as error:
            if is_cuda_error(error):
                raise bench.Failed(f"path {name}: {bench.first_line(error)}") from error
            entry = {"failed": bench.first_line(error)}
        else:
            entry = compare(first, second)
        record["repeat"][name] = entry
        if "failed" in entry:
            print(f"{name} failed: {entry['failed']}")
        elif entry["differing"]:
            counted = f"{entry['differing']} of {entry['compared']} tensors differ"
            print(f"{name}: {counted}, first {entry['first']}, by {entry['largest']:.1e} at most")
        else:
            print(f"{name}: {entry['compared']} tensors are the same bits after {STEPS} steps")
        if options.json:
            bench.write_json(options.json, record)
    return int(any("failed" in entry for entry in record["repeat"].values()))


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
