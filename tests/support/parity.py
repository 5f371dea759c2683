"""Pretraining steps on fixed clips by however many processes, for comparison number by number.

    python tests/support/parity.py --config run.yaml --out numbers.pt --cut "ppo.epochs=1"

Started as the training commands are, alone or under a launcher.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import torch

from tats_fast.commands.training import resolve_engine
from tats_fast.config import RunConfig, load_config
from tats_fast.engine.distributed import World, end_process, join_world
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.plan import plan_step
from tats_fast.pretrain.step import pretrain_step

SEED = 7


def numbers(config: RunConfig, world: World, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Train ``train.steps`` steps: each one's metrics, ``rows``, and the ``weights`` after all."""
    model, train = config.model, config.train
    shape = (train.batch_size, model.num_frames, model.image_size, model.image_size, 3)
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    torch.set_default_dtype(dtype)
    try:
        learner = make_learner(config, world)
        for step in range(train.steps):
            clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            own = clips.chunk(world.size)[world.rank].chunk(train.accumulation)
            metrics = pretrain_step(learner, list(own), plan_step(config, step, train.steps))
            rows.append({name: value.item() for name, value in metrics.items()})
    finally:
        torch.set_default_dtype(torch.float32)
    return {"rows": rows, "weights": learner.model_state()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--cut", action="append", help="overrides; once for each run")
    parser.add_argument("--dtype", action="append", default=[])
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    # What is compiled is traced and cut as on a GPU; a compiler for this processor takes a minute.
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    world, found = None, {}
    for dtype in options.dtype:
        for cut in options.cut:
            config = load_config(options.config, cut.split())
            config = resolve_engine(config, by_deepspeed=options.local_rank is not None)
            if world is None:
                deepspeed = config.distributed.engine == "deepspeed"
                world = join_world("cpu", options.local_rank, deepspeed)
            found[dtype, cut] = numbers(config, world, getattr(torch, dtype))
    if world.is_main:
        torch.save(found, options.out)
    end_process(0)


if __name__ == "__main__":
    main()
