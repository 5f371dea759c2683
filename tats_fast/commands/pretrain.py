"""``tats-fast pretrain``."""

from __future__ import annotations

import argparse

from tats_fast.commands.running import add_run_arguments, run_training
from tats_fast.config import load_config


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    pretrain = commands.add_parser("pretrain", help="train autoencoder and sampler")
    add_run_arguments(pretrain)
    pretrain.set_defaults(run=_pretrain)


def _pretrain(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)

    from tats_fast.pretrain.trainer import Trainer

    return run_training(Trainer, config, getattr(options, "local_rank", None))
