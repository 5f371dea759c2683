"""``tats-fast plan``."""

from __future__ import annotations

import argparse

from tats_fast.commands.running import Command
from tats_fast.config import load_config
from tats_fast.config.options import chosen
from tats_fast.pretrain.planner_options import PlanOptions


def _plan(arguments: argparse.Namespace) -> int:
    from tats_fast.pretrain.planner import lines, make_plan

    options = chosen(PlanOptions, arguments)
    config = load_config(overrides=[f"model.preset={options.model}", *arguments.overrides])
    print("\n".join(lines(make_plan(config, options))))
    return 0


PLAN = Command(
    "plan",
    "memory, FLOP, hours and storage of a pretraining run, before it starts",
    _plan,
    options=(PlanOptions,),
    override="train.recompute=true",
)
