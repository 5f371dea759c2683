"""Some pretraining steps on fixed clips with however many processes, for comparison by number.

    python tests/support/parity.py --config run.yaml --out numbers.pt [--dtype float64]

Started as the training commands are, alone or under a launcher; ``key=value`` overrides follow.
"""

from __future__ import annotations

import argparse

import torch

from tats_fast.commands.training import resolve_engine
from tats_fast.config import load_config
from tats_fast.engine.distributed import end_process, join_world
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.plan import plan_step
from tats_fast.pretrain.step import pretrain_step

SEED = 7


def train(options: argparse.Namespace) -> None:
    """Write the steps' metrics, ``rows``, and the ``weights`` after the last."""
    config = load_config(options.config, options.overrides)
    config = resolve_engine(config, by_deepspeed=options.local_rank is not None)
    world = join_world("cpu", options.local_rank, config.distributed.engine == "deepspeed")
    torch.set_default_dtype(getattr(torch, options.dtype))
    learner = make_learner(config, world)
    model, train = config.model, config.train
    shape = (train.batch_size, model.num_frames, model.image_size, model.image_size, 3)
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for step in range(train.steps):
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        own = clips.chunk(world.size)[world.rank].chunk(train.accumulation)
        metrics = pretrain_step(learner, list(own), plan_step(config, step, train.steps))
        rows.append({name: value.item() for name, value in metrics.items()})
    if world.is_main:
        torch.save({"rows": rows, "weights": learner.model_state()}, options.out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("overrides", nargs="*")
    train(parser.parse_intermixed_args())
    end_process(0)


if __name__ == "__main__":
    main()
