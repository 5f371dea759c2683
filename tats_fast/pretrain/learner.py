"""What a pretraining step changes: autoencoder, sampler, their optimizers, the reward's scale."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.config import ConfigError, RunConfig
from tats_fast.engine.average import WeightAverage
from tats_fast.engine.distributed import World
from tats_fast.engine.optim import load_optimizer, make_optimizer
from tats_fast.engine.precision import wants_bf16
from tats_fast.engine.runner import Runner, make_runner
from tats_fast.engine.zero3 import empty_twin, filled
from tats_fast.models import MaskedAutoencoder, TokenSampler
from tats_fast.models.encoder import VideoEncoder
from tats_fast.models.execution import compiled_cut, prepare_blocks
from tats_fast.models.patchify import patches_and_statistics
from tats_fast.models.restore import EMA, build_models
from tats_fast.pretrain.initial import load_initial
from tats_fast.pretrain.step import Rollout
from tats_fast.pretrain.teacher import load_teacher
from tats_fast.rl import RewardScale
from tats_fast.rl.reward import initial_value

MAE, HEAD = "mae.", "feature_head."
"""Of the parameters' names in a ``Rollout``."""


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
    average: WeightAverage | None = None
    """Of the autoencoder; None = not kept."""
    teacher: VideoEncoder | None = None
    """Frozen; what its features are predicted for is ``teacher`` in the configuration."""
    cut: Callable[..., tuple[Tensor, Tensor, Tensor]] = patches_and_statistics
    """``patches_and_statistics``, compiled or not."""
    twin: MaskedAutoencoder | None = None
    """For ``whole_mae``, where no process has all weights."""

    @property
    def mae(self) -> MaskedAutoencoder:
        """The bare autoencoder."""
        return self.runner.module.mae

    @contextlib.contextmanager
    def whole_mae(self, averaged: bool = False) -> Iterator[MaskedAutoencoder | None]:
        """The autoencoder to measure with, on the first process, with its own weights or their
        average; None on the others. All processes enter it."""
        with self.average.in_place() if averaged else contextlib.nullcontext():
            weights = {} if self.twin is None else _of(self.runner.weights(), MAE)
            if not self.world.is_main:
                yield None
            elif self.twin is None:
                yield self.mae
            else:
                with filled(self.twin, weights, self.world.device) as mae:
                    yield mae

    def _average(self) -> dict[str, Tensor]:
        """The average of the autoencoder's parameters, whole on the first process. All call it."""
        if self.twin is None:
            return self.average.values
        with self.average.in_place():
            whole = _of(self.runner.weights(), MAE)
        return {name: value for name, value in whole.items() if name in self.average.values}

    def model_state(self) -> dict[str, Any]:
        """What the model is, for a checkpoint; whole on the first process. All call it."""
        sampler, whole = self.sampler, self.runner.weights()
        state = {
            "mae": _of(whole, MAE),
            "sampler": None if sampler is None else sampler.state_dict(),
        }
        if self.average is not None:
            state[EMA] = self._average()
        if self.runner.module.feature_head is not None:
            state["feature_head"] = _of(whole, HEAD)
        return state

    def trainer_state(self) -> dict[str, Any]:
        """What else continues this training, besides the autoencoder's optimizer."""
        optimizer = self.sampler_optimizer
        return {
            "sampler_optimizer": None if optimizer is None else optimizer.state_dict(),
            "reward_scale": self.reward_scale._asdict(),
        }

    def load_state(self, model: dict[str, Any], trainer: dict[str, Any]) -> None:
        """Restore what ``model_state`` and ``trainer_state`` returned."""
        weights = {MAE + name: value for name, value in model["mae"].items()}
        if self.runner.module.feature_head is not None:
            weights |= {HEAD + name: value for name, value in model["feature_head"].items()}
        if self.average is not None:  # where none was kept so far, it starts here
            begun = {MAE + name: value for name, value in model.get(EMA, {}).items()}
            self.runner.load_weights(weights | begun)
            self.average.load(_of(self.runner.parts(), MAE))
        self.runner.load_weights(weights)
        if self.sampler is not None:
            self.sampler.load_state_dict(model["sampler"])
            load_optimizer(self.sampler_optimizer, trainer["sampler_optimizer"])
        scale = trainer["reward_scale"].items()
        self.reward_scale = RewardScale(**{k: v.to(self.world.device) for k, v in scale})


def _of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Those of ``MAE`` or ``HEAD``, by their names there."""
    return {n.removeprefix(part): w for n, w in weights.items() if n.startswith(part)}


def kernel_levels(device_type: str) -> list[str]:
    """Which implementations of the hot ops run.

    Raises:
        ValueError: ``TATS_KERNELS`` names one that cannot.
    """
    return sorted({kernels.resolved_level(op, device_type) for op in kernels.ops()})


def make_learner(config: RunConfig, world: World, resumes: bool = False) -> Learner:
    """Seeded models and optimizers on this process's device.

    Args:
        resumes: a checkpoint will be loaded, so that ``train.init_from`` need not be there.

    Raises:
        ConfigError: ``train.init_from`` is missing or does not fit, a backend that cannot run.
    """
    torch.manual_seed(config.seed)  # the same weights on every process
    bf16 = wants_bf16(config.train.precision, world.device)
    try:
        kernel_levels(world.device.type)
        mae, sampler = build_models(config, world.device.type, initial_value(config.ppo.credit))
        teacher = load_teacher(config, world.device)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    mae, split = mae.to(world.device), config.distributed.splits_weights
    twin = empty_twin(mae) if split else None
    features = None if teacher is None else teacher.config.width
    rollout = Rollout(mae, config, features).to(world.device)
    if config.train.init_from is not None and not resumes:
        # Before there is an optimizer: ZeRO's updates its own copy of the weights it is given.
        load_initial(config, mae, sampler, rollout.feature_head, world.is_main)
    sampler = None if sampler is None else sampler.to(world.device)
    fixed_length = config.masking.schedule == "constant"
    prepare_blocks(config.train, world.device, fixed_length, mae, split=split)
    prepare_blocks(config.train, world.device, fixed_length, sampler)
    prepare_blocks(config.train, world.device, True, teacher)
    runner = make_runner(rollout, make_optimizer(rollout, config.optim), config, world, bf16)
    decay, average = config.train.ema_decay, None
    if decay > 0:
        average = WeightAverage(lambda: _of(runner.parts(), MAE), decay)
    compiled = config.train.compiles(world.device.type)
    return Learner(
        config=config,
        world=world,
        runner=runner,
        sampler=sampler,
        sampler_optimizer=None if sampler is None else make_optimizer(sampler, config.optim),
        reward_scale=RewardScale.initial(world.device),
        generator=torch.Generator(world.device),
        bf16=bf16,
        teacher=teacher,
        average=average,
        cut=compiled_cut() if compiled else patches_and_statistics,
        twin=twin,
    )
