"""``tats-fast pretrain``."""

from __future__ import annotations

import argparse
import logging

from tats_fast.commands.common import add_run_arguments, resolve_engine
from tats_fast.config import load_config

LOGGER = logging.getLogger("tats_fast")


def add(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    pretrain = commands.add_parser("pretrain", help="train autoencoder and sampler")
    add_run_arguments(pretrain)
    pretrain.set_defaults(run=_pretrain)


def _pretrain(options: argparse.Namespace) -> int:
    local_rank = getattr(options, "local_rank", None)
    config = load_config(options.config, options.overrides)
    config = resolve_engine(config, by_deepspeed=local_rank is not None)

    from tats_fast.engine.distributed import join_world
    from tats_fast.engine.trainer import Stopped, Trainer

    world = join_world(config, local_rank)
    if not world.is_main:
        LOGGER.setLevel(logging.ERROR)
    try:
        Trainer(config, world).run()
    except Stopped as stop:
        LOGGER.warning("%s; the same command continues it", stop)
        return 128 + stop.signum
    return 0
