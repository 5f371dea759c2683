"""What several commands share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from tats_fast.config import ConfigError, RunConfig, parse_overrides


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


def resolve_engine(config: RunConfig, by_deepspeed: bool) -> RunConfig:
    """Settle ``distributed.engine=auto``: DeepSpeed under its launcher, except for stage 0."""
    distributed = config.distributed
    if distributed.engine != "auto":
        return config
    engine = "deepspeed" if by_deepspeed and distributed.zero_stage > 0 else "ddp"
    return dataclasses.replace(config, distributed=dataclasses.replace(distributed, engine=engine))
