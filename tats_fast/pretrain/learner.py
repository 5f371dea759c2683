"""What a pretraining step changes: autoencoder, sampler, their optimizers, the reward's scale."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.config import ConfigError, RunConfig
from tats_fast.engine.distributed import World
from tats_fast.engine.optim import load_optimizer, make_optimizer
from tats_fast.engine.precision import wants_bf16
from tats_fast.engine.runner import Runner, make_runner
from tats_fast.engine.zero3 import empty_twin, filled
from tats_fast.models import MaskedAutoencoder, TokenSampler
from tats_fast.models.execution import compiled_cut, prepare_blocks
from tats_fast.models.patchify import patches_and_statistics
from tats_fast.models.restore import build_models, current_names
from tats_fast.pretrain.initial import load_initial
from tats_fast.pretrain.step import Rollout
from tats_fast.rl import RewardScale
from tats_fast.rl.reward import initial_value

PREFIX = "mae."
"""Of the autoencoder's parameters in a ``Rollout``."""


@dataclass
class Learner:
    """The state that a pretraining step changes, and what the step needs."""

    config: RunConfig
    world: World
    runner: Runner
    """The autoencoder, inside a ``Rollout``, and its optimizer."""
    sampler: TokenSampler | None
    sampler_optimizer: torch.optim.Optimizer | None
    reward_scale: RewardScale
    generator: torch.Generator
    bf16: bool
    cut: Callable[..., tuple[Tensor, Tensor, Tensor]] = patches_and_statistics
    """``patches_and_statistics``, compiled or not."""
    twin: MaskedAutoencoder | None = None
    """For ``whole_mae``, where no process has all weights."""

    @property
    def mae(self) -> MaskedAutoencoder:
        """The bare autoencoder."""
        return self.runner.module.mae

    @contextlib.contextmanager
    def whole_mae(self) -> Iterator[MaskedAutoencoder | None]:
        """The autoencoder to measure with, on the first process; None on the others. All processes
        enter it."""
        weights = {} if self.twin is None else self._mae_weights()
        if not self.world.is_main:
            yield None
        elif self.twin is None:
            yield self.mae
        else:
            with filled(self.twin, weights, self.world.device) as mae:
                yield mae

    def _mae_weights(self) -> dict[str, Tensor]:
        return {name.removeprefix(PREFIX): value for name, value in self.runner.weights().items()}

    def model_state(self) -> dict[str, Any]:
        """Content of a checkpoint's ``model.pt``, whole on the first process. All call it."""
        sampler = self.sampler
        return {
            "mae": self._mae_weights(),
            "sampler": None if sampler is None else sampler.state_dict(),
        }

    def trainer_state(self) -> dict[str, Any]:
        """What else continues this training, besides the autoencoder's optimizer."""
        optimizer = self.sampler_optimizer
        return {
            "sampler_optimizer": None if optimizer is None else optimizer.state_dict(),
            "reward_scale": self.reward_scale._asdict(),
        }

    def load_state(self, model: dict[str, Any], trainer: dict[str, Any]) -> None:
        """Restore what ``model_state`` and ``trainer_state`` returned."""
        stored = current_names(model["mae"])
        self.runner.load_weights({PREFIX + name: value for name, value in stored.items()})
        if self.sampler is not None:
            self.sampler.load_state_dict(model["sampler"])
            load_optimizer(self.sampler_optimizer, trainer["sampler_optimizer"])
        scale = trainer["reward_scale"].items()
        self.reward_scale = RewardScale(**{k: v.to(self.world.device) for k, v in scale})


def kernel_levels(device_type: str) -> list[str]:
    """Which implementations of the hot ops run.

    Raises:
        ValueError: ``TATS_KERNELS`` names one that cannot.
    """
    return sorted({kernels.resolved_level(op, device_type) for op in kernels.ops()})


def make_learner(config: RunConfig, world: World, initial: str | None = None) -> Learner:
    """Seeded models and optimizers on this process's device.

    Args:
        initial: as ``train.init_from``. Read here, because DeepSpeed then takes its own copies.
    """
    torch.manual_seed(config.seed)  # the same weights on every process
    bf16 = wants_bf16(config.train.precision, world.device)
    try:
        kernel_levels(world.device.type)
        mae, sampler = build_models(config, world.device.type, initial_value(config.ppo.credit))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if initial is not None:
        load_initial(mae, initial, world.is_main)
    mae, split = mae.to(world.device), config.distributed.splits_weights
    twin = empty_twin(mae) if split else None
    rollout = Rollout(mae, config)
    sampler = None if sampler is None else sampler.to(world.device)
    fixed_length = config.masking.schedule == "constant"
    prepare_blocks(config.train, world.device, fixed_length, mae, split=split)
    prepare_blocks(config.train, world.device, fixed_length, sampler)
    compiled = config.train.compiles(world.device.type)
    return Learner(
        config=config,
        world=world,
        runner=make_runner(rollout, make_optimizer(rollout, config.optim), config, world, bf16),
        sampler=sampler,
        sampler_optimizer=None if sampler is None else make_optimizer(sampler, config.optim),
        reward_scale=RewardScale.initial(world.device),
        generator=torch.Generator(world.device),
        bf16=bf16,
        cut=compiled_cut() if compiled else patches_and_statistics,
        twin=twin,
    )
