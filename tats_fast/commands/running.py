"""What several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tats_fast.config import ConfigError, FinetuneConfig, RunConfig, parse_overrides

if TYPE_CHECKING:
    from tats_fast.engine.loop import TrainingLoop

LOGGER = logging.getLogger("tats_fast")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What commands that train take: a configuration and its overrides, under any launcher."""
    parser.add_argument("--config", metavar="FILE", help="YAML file; none = all defaults")
    add_local_rank(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example train.steps=100"
    )


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """``--local_rank``, which the deepspeed launcher puts behind the script or module it starts."""
    parser.add_argument(
        "--local_rank",
        "--local-rank",
        type=int,
        default=argparse.SUPPRESS,  # on the program and on its command: the one given counts
        help=argparse.SUPPRESS,
    )


def add_model_overrides(parser: argparse.ArgumentParser) -> None:
    """``model.*`` overrides."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example model.image_size=112"
    )


def model_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["model.heads=6"]`` -> ``{"heads": 6}``."""
    parsed = parse_overrides(overrides)
    for key, value in parsed.items():
        if not key.startswith("model."):
            raise ConfigError(f"{key}={value}: only model.* has a meaning here")
    return {key.removeprefix("model."): value for key, value in parsed.items()}


Config = TypeVar("Config", RunConfig, FinetuneConfig)


def resolve_engine(config: Config, by_deepspeed: bool) -> Config:
    """Settle ``distributed.engine=auto``: DeepSpeed under its launcher, except for stage 0."""
    distributed = config.distributed
    if distributed.engine != "auto":
        return config
    engine = "deepspeed" if by_deepspeed and distributed.zero_stage > 0 else "ddp"
    return dataclasses.replace(config, distributed=dataclasses.replace(distributed, engine=engine))


def run_training(
    loop: type[TrainingLoop], config: RunConfig | FinetuneConfig, local_rank: int | None
) -> int:
    """Join the launcher's processes and run ``loop``; the command's exit code.

    local_rank: what the deepspeed launcher passed; None under any other.
    """
    from tats_fast.engine.distributed import join_world, launched_processes
    from tats_fast.engine.loop import Stopped

    config = resolve_engine(config, by_deepspeed=local_rank is not None)
    config.check_world_size(launched_processes())
    world = join_world(config.device, local_rank, config.distributed.engine == "deepspeed")
    if not world.is_main:
        LOGGER.setLevel(logging.ERROR)
    try:
        loop(config, world).run()
    except Stopped as stop:
        LOGGER.warning("%s; the same command continues it", stop)
        return 128 + stop.signum
    return 0
