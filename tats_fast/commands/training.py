"""``tats-fast pretrain`` and ``tats-fast finetune``."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tats_fast.commands.running import Command
from tats_fast.config import FinetuneConfig, RunConfig, load_config, load_finetune_config
from tats_fast.config.checks import require
from tats_fast.config.options import Options, chosen, option

if TYPE_CHECKING:
    from tats_fast.engine.loop import TrainingLoop

LOGGER = logging.getLogger("tats_fast")
Config = TypeVar("Config", RunConfig, FinetuneConfig)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """The options of commands that train."""

    config: str | None = option(
        None, "recipe (such as quickstart) or YAML file; none = all defaults", metavar="NAME|FILE"
    )
    dry_run: bool = option(
        False, "check everything, train two steps and forget them; write nothing"
    )


def _pretrain(arguments: argparse.Namespace) -> int:
    options = chosen(TrainingOptions, arguments)
    config = load_config(options.config, arguments.overrides)

    from tats_fast.pretrain.trainer import Trainer

    return run_training(Trainer, config, arguments.local_rank, options.dry_run)


def _finetune(arguments: argparse.Namespace) -> int:
    options = chosen(TrainingOptions, arguments)
    config = load_finetune_config(options.config, arguments.overrides)

    from tats_fast.finetune.trainer import Finetuner

    return run_training(Finetuner, config, arguments.local_rank, options.dry_run)


def resolve_engine(config: Config, by_deepspeed: bool) -> Config:
    """Settle ``distributed.engine=auto``: DeepSpeed under its launcher, except for stage 0.

    Raises:
        ConfigError: several processes under another launcher, and settings of DeepSpeed.
    """
    from tats_fast.engine.distributed import launched_processes

    distributed = config.distributed
    if distributed.engine != "auto":
        return config
    if launched_processes() > 1 and not by_deepspeed:
        remedy = "this launcher runs DDP; add distributed.engine=deepspeed"
        stage, file = distributed.zero_stage, distributed.deepspeed_config
        require(stage < 2, "distributed.zero_stage", stage, remedy)
        require(file is None, "distributed.deepspeed_config", file, remedy)
    engine = "deepspeed" if by_deepspeed and distributed.zero_stage > 0 else "ddp"
    return dataclasses.replace(config, distributed=dataclasses.replace(distributed, engine=engine))


def run_training(
    loop: type[TrainingLoop],
    config: RunConfig | FinetuneConfig,
    local_rank: int | None,
    dry_run: bool = False,
) -> int:
    """Join the launcher's processes and run ``loop``.

    Args:
        local_rank: what the deepspeed launcher passed; None under any other.

    Returns:
        The command's exit code.
    """
    from tats_fast.data.files import require_writable
    from tats_fast.engine.distributed import join_world, launched_processes
    from tats_fast.engine.signals import Stopped, watch_launcher
    from tats_fast.engine.trial import try_out

    watch_launcher(by_deepspeed=local_rank is not None)
    config = resolve_engine(config, by_deepspeed=local_rank is not None)
    config.check_world_size(launched_processes())
    require_writable(Path(config.output_dir) / config.name, "output_dir")
    world = join_world(config.device, local_rank, config.distributed.engine == "deepspeed")
    if not world.is_main:
        LOGGER.setLevel(logging.ERROR)
    if dry_run:
        said = try_out(loop(config, world, writes=False))
        print("\n".join(said if world.is_main else []))
        return 0
    try:
        loop(config, world).run()
    except Stopped as stop:
        again = "the same command" + (
            "" if config.train.resume == "auto" else " with train.resume=auto"
        )
        LOGGER.warning("%s; %s continues it", stop, again)
        return 128 + stop.signum
    return 0


PRETRAIN = Command(
    *("pretrain", "train autoencoder and sampler", _pretrain),
    options=(TrainingOptions,),
    override="train.steps=100",
)
FINETUNE = PRETRAIN._replace(
    name="finetune", help="train an encoder and a classifier on labels", run=_finetune
)
