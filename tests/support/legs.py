"""Several pieces of training one after the other in the same processes, each as the command would
do it: a launch, and the imports of all its processes, cost more than these pieces.

    torchrun ... tests/support/legs.py --config run.yaml --leg "train.steps=2" --leg "train.steps=4"
"""

from __future__ import annotations

import argparse

from tats_fast.commands.training import run_training
from tats_fast.config import load_config, load_finetune_config
from tats_fast.engine.distributed import end_process
from tats_fast.finetune.trainer import Finetuner
from tats_fast.pretrain.trainer import Trainer


def run_legs(config: str, legs: list[str], finetune: bool = False, local_rank: int | None = None):
    """Train to the end of each leg: settings in one string, as on the command line."""
    loop, load = (Finetuner, load_finetune_config) if finetune else (Trainer, load_config)
    for leg in legs:
        assert run_training(loop, load(config, leg.split()), local_rank) == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--leg", action="append", required=True)
    parser.add_argument("--finetune", action="store_true")
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    run_legs(options.config, options.leg, options.finetune, options.local_rank)
    end_process(0)


if __name__ == "__main__":
    main()
