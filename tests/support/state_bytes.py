"""Bytes that a training process has taken at its peak, and those of all tensors that Python knows
between two steps, printed as JSON.

torchrun --nproc_per_node=2 tests/support/state_bytes.py --config run.yaml --cut "key=value ..."
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.distributed as dist
from live_memory import alive, peak_growth
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tats_fast.config import RunConfig, load_config
from tats_fast.engine.distributed import World, end_process, join_world
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.plan import plan_step
from tats_fast.pretrain.step import pretrain_step


def exchange(buckets, bucket):  # DDP refuses annotations that are texts, as they are in this file
    """DDP's own exchange; its buckets are known to Python afterwards, as DeepSpeed's are."""
    buckets[bucket.index()] = bucket.buffer()
    return allreduce_hook(dist.group.WORLD, bucket)


def measured(config: RunConfig, world: World) -> dict[str, int]:
    """Of three steps."""
    kept, buckets = [], {}

    def train() -> None:
        kept.append(make_learner(config, world))
        if config.distributed.engine == "ddp":
            kept[0].runner._wrapped.register_comm_hook(buckets, exchange)
        model, size = config.model, config.train.batch_size // world.size
        for step in range(3):
            shape = (size, model.num_frames, model.image_size, model.image_size, 3)
            clips = torch.zeros(shape, dtype=torch.uint8)
            buckets.clear()  # those of the first step are replaced in the second
            pretrain_step(kept[0], [clips], plan_step(config, step, 10))

    before = sum(alive().values())
    peak = peak_growth(train, freed_unseen=True)
    return {"alive": sum(alive().values()) - before, "peak": peak}


def smaller_of_two(config: RunConfig, world: World) -> dict[str, int]:
    """The round with less at its peak, which on a busy machine was a tenth higher once: probably a
    bucket that the exchange's thread let go late."""
    return min((measured(config, world) for _ in range(2)), key=lambda found: found["peak"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--cut", action="append", help="overrides; once for each run")
    options = parser.parse_args()
    world = join_world("cpu", group=True)
    configs = {cut: load_config(options.config, cut.split()) for cut in options.cut}
    found = {cut: smaller_of_two(config, world) for cut, config in configs.items()}
    if world.is_main:
        print(json.dumps(found), flush=True)
    end_process(0)


if __name__ == "__main__":
    main()
