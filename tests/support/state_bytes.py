"""Bytes that a training process has taken at its peak, and those of all tensors that Python knows
between two steps, printed as JSON.

deepspeed --num_accelerators 2 tests/support/state_bytes.py --config run.yaml [key=value ...]
"""

from __future__ import annotations

import argparse
import gc
import json

import torch
from live_memory import peak_growth

from tats_fast.commands.training import resolve_engine
from tats_fast.config import load_config
from tats_fast.engine.distributed import end_process, join_world
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.plan import plan_step
from tats_fast.pretrain.step import pretrain_step


def alive() -> int:
    """Of tensors that Python knows, each memory once."""
    gc.collect()
    found = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in found if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    config = load_config(options.config, options.overrides)
    config = resolve_engine(config, by_deepspeed=options.local_rank is not None)
    world = join_world("cpu", options.local_rank, config.distributed.engine == "deepspeed")
    kept = []

    def train() -> None:
        kept.append(make_learner(config, world))
        model, size = config.model, config.train.batch_size // world.size
        for step in range(3):
            shape = (size, model.num_frames, model.image_size, model.image_size, 3)
            clips = torch.zeros(shape, dtype=torch.uint8)
            pretrain_step(kept[0], [clips], plan_step(config, step, 10))

    before = alive()
    peak = peak_growth(train)
    found = {"alive": alive() - before, "peak": peak}
    if world.is_main:
        print(json.dumps(found), flush=True)
    end_process(0)


if __name__ == "__main__":
    main()
