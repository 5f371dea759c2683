"""What saving and loading a checkpoint takes: the copy that training waits for, the writing beside
it, and of that the checksums and the flush to the disk.

python benchmarks/checkpoint.py --folder /fast/disk --rounds 5
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from parts import bench

from tats_fast.config import load_config
from tats_fast.engine import store
from tats_fast.engine.checkpoint import Position, collect, load_checkpoint, write_checkpoint
from tats_fast.engine.distributed import World
from tats_fast.pretrain.learner import Learner, make_learner
from tats_fast.run_folder import damage

CPU = World(0, 1, torch.device("cpu"))


def make_parser() -> bench.Parser:
    """The command line."""
    parser = bench.Parser(__doc__)
    add = parser.add_argument
    add("--preset", default="vit_base", help="model.preset (default: vit_base)")
    add("--rounds", type=bench.positive_int, default=5, help="checkpoints written (default: 5)")
    add("--folder", help="write below this folder; none = the system's temporary one")
    return parser


def trained(learner: Learner) -> Learner:
    """The learner with optimizers that have moments to save."""
    for optimizer in (learner.runner.optimizer, learner.sampler_optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return learner


def run(options: Any) -> int:
    """Every round in turn; prints a table."""
    config = load_config(overrides=[f"model.preset={options.preset}", "device=cpu"])
    learner = trained(make_learner(config, CPU))
    record = bench.new_record(torch.device("cpu"))
    print("\n".join(bench.provenance(record, "torch")), flush=True)
    parts = ("copy (training waits)", "write", "of it seal", "verify", "load")
    seconds: dict[str, list[float]] = {name: [] for name in parts}

    def timed(name: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name].append(time.perf_counter() - start)
        return result

    seal, store.seal = store.seal, lambda folder: timed("of it seal", partial(seal, folder))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in range(options.rounds):
            position = Position(step=number)
            copy = partial(collect, Path(folder), learner, config, position)
            contents = timed("copy (training waits)", copy)
            write = partial(write_checkpoint, Path(folder), contents)
            checkpoint = timed("write", write)
            if timed("verify", partial(damage, checkpoint)) is not None:
                raise bench.Failed(f"{checkpoint} is damaged")
            timed("load", partial(load_checkpoint, checkpoint, learner, config))
        size = sum(path.stat().st_size for path in checkpoint.rglob("*")) / 2**30
    store.seal = seal
    rows = []
    for name, values in seconds.items():
        spread = bench.percentiles(values)
        rows.append([name, *(bench.number(value, 2) for value in spread.values())])
    print(f"{options.preset}: {size:.2f} GiB per checkpoint, {options.rounds} rounds, seconds")
    print(bench.table(["part", *spread], rows))
    return 0


main = partial(bench.run_script, make_parser(), run)

if __name__ == "__main__":
    sys.exit(main())
