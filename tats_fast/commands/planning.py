"""``tats-fast plan``."""

from __future__ import annotations

import argparse

from tats_fast.commands.running import Command
from tats_fast.config import load_config
from tats_fast.config.options import chosen
from tats_fast.config.reading import parse_overrides
from tats_fast.pretrain.planner_options import PlanOptions


def _plan(arguments: argparse.Namespace) -> int:
    from tats_fast.pretrain.planner import lines, make_plan

    options = chosen(PlanOptions, arguments)
    # The batch that --batch means, before anything is asked to divide it.
    accumulation = parse_overrides(arguments.overrides).get("train.accumulation", 1)
    batch = options.gpus * options.batch * accumulation if isinstance(accumulation, int) else 1
    given = [f"model.preset={options.model}", *arguments.overrides]
    config = load_config(overrides=[*given, f"train.batch_size={max(batch, 1)}"])
    print("\n".join(lines(make_plan(config, options))))
    return 0


PLAN = Command(
    "plan",
    "memory, FLOP, hours and storage of a pretraining run, before it starts",
    _plan,
    options=(PlanOptions,),
    override="train.recompute=true",
)
