"""``tats-fast finetune``."""

from __future__ import annotations

import argparse

from tats_fast.commands.running import add_run_arguments, run_training
from tats_fast.config import load_finetune_config


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    finetune = commands.add_parser("finetune", help="train an encoder and a classifier on labels")
    add_run_arguments(finetune)
    finetune.set_defaults(run=_finetune)


def _finetune(options: argparse.Namespace) -> int:
    config = load_finetune_config(options.config, options.overrides)

    from tats_fast.finetune.trainer import Finetuner

    return run_training(Finetuner, config, getattr(options, "local_rank", None))
