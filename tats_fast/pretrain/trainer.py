"""Pretraining: autoencoder and sampler in the training loop; holds no maths of its own."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from tats_fast.config import ConfigError, RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.data.eval_clips import load_eval_clips
from tats_fast.data.loader import ClipBatch
from tats_fast.engine.distributed import World
from tats_fast.engine.logs import RunLog, SilentLog
from tats_fast.engine.loop import TrainingLoop
from tats_fast.engine.optim import lr_at, make_optimizer
from tats_fast.engine.precision import wants_bf16
from tats_fast.engine.runner import make_runner
from tats_fast.masking import mask_ratio_at, visible_tokens
from tats_fast.models.execution import compiled_statistics, prepare_blocks
from tats_fast.models.patchify import token_statistics
from tats_fast.models.restore import build_models
from tats_fast.pretrain.describe import describe, kernel_levels
from tats_fast.pretrain.held_out import evaluate
from tats_fast.pretrain.initial import load_initial
from tats_fast.pretrain.probing import Prober
from tats_fast.pretrain.step import Learner, StepPlan, train_step
from tats_fast.report.pictures import mask_sheet
from tats_fast.rl import RewardScale
from tats_fast.rl.reward import initial_value

LOGGER = logging.getLogger("tats_fast")


class Trainer(TrainingLoop):
    """One pretraining run."""

    config: RunConfig
    learner: Learner
    shown = (
        ("loss_recon", "loss", ".4f"),
        ("entropy_frac", "entropy", ".3f"),
        ("motion_lift", "motion lift", ".3f"),
    )

    def make_learner(self) -> Learner:
        config = self.config
        self.eval_clips = self._load_eval_clips()
        self.prober = Prober.of(config) if self.world.is_main else None
        learner = make_learner(config, self.world)
        if config.train.init_from is not None and self.resume_from is None:
            load_initial(learner.runner.module, config.train.init_from, self.world.is_main)
        return learner

    def clip_shape(self) -> tuple[int, int]:
        return self.config.model.num_frames, self.config.model.image_size

    def describe(self) -> str:
        return describe(self.config, self.world, len(self.videos), self.total_steps)

    def train_step(self, batches: list[ClipBatch]) -> dict[str, Tensor]:
        clips = [b.clips.to(self.world.device, non_blocking=True) for b in batches]
        self._planned = self._plan()
        return train_step(self.learner, clips, self._planned)

    def row(self) -> dict[str, Any]:
        plan = self._planned
        return {
            "lr": plan.lr,
            "mask_ratio": 1 - plan.visible / self.config.model.num_tokens,
            "strategy": "random (warm-up)" if plan.warmup else self.config.masking.strategy,
        }

    def _plan(self) -> StepPlan:
        config, step = self.config, self.position.step
        progress = step / max(1, self.total_steps - 1)
        ratio = mask_ratio_at(config.masking, progress)
        warmup = config.masking.strategy in LEARNED_STRATEGIES and (
            step < round(config.sampler.warmup_frac * self.total_steps)
        )
        return StepPlan(
            step=step,
            lr=lr_at(config.optim, step, self.total_steps, config.train.batch_size),
            visible=visible_tokens(config.masking.strategy, config.model, ratio),
            warmup=warmup,
        )

    def _load_eval_clips(self) -> Tensor | None:
        """Held-out clips, on the first process alone (weights are the same on all)."""
        config = self.config
        if config.data.eval is None or not self.world.is_main:
            return None
        videos = self.read_videos("eval")
        model = config.model
        clips = load_eval_clips(
            videos,
            config.train.eval_clips,
            model.num_frames,
            config.data.stride,
            model.image_size,
        )
        for path, reason in clips.bad:
            LOGGER.warning("held-out video left out, it cannot be decoded: %s (%s)", path, reason)
        if len(clips.clips) == 0:
            raise ConfigError(f"data.eval={config.data.eval}: none of its videos can be decoded")
        return clips.clips.to(self.world.device)

    def evaluate(self, log: RunLog | SilentLog) -> None:
        every, step = self.config.train.eval_every, self.position.step
        held_out = step == 0 or self.finished or (every and step % every == 0)
        passes = self.config.eval.probe_every
        probes = step > 0 and passes > 0 and self.due_after_passes(passes)
        if held_out and self.eval_clips is not None:
            self._measure(log)
        if probes and self.prober is not None:
            row, text = self.prober.measure(self.learner.runner.module)
            log.evaluation({"step": step, **row}, text)
        if held_out or probes:
            self.world.barrier()

    def _measure(self, log: RunLog | SilentLog) -> None:
        learner = self.learner
        mae = learner.runner.module
        values = evaluate(self.config, mae, learner.sampler, self.eval_clips, learner.bf16)
        text = f"held-out: loss {values['loss_recon_random']:.4f} under the fixed random mask"
        lift = values.get("motion_lift_sampler")
        if lift is not None:
            text += f", motion lift of the sampler {lift:.2f}"
        log.evaluation({"step": self.position.step, **values}, text)

    def picture(self, log: RunLog | SilentLog) -> None:
        every = self.config.train.image_every
        if every and self.eval_clips is not None and self.due(every):
            learner = self.learner
            sheet = mask_sheet(
                self.config, learner.runner.module, learner.sampler, self.eval_clips[:4]
            )
            log.image("sampled_masks", sheet, self.position.step)


def make_learner(config: RunConfig, world: World) -> Learner:
    """Seeded models and optimizers on this process's device."""
    torch.manual_seed(config.seed)  # the same weights on every process
    bf16 = wants_bf16(config.train.precision, world.device)
    try:
        kernel_levels(world.device.type)
        mae, sampler = build_models(config, world.device.type, initial_value(config.ppo.credit))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    mae = mae.to(world.device)
    sampler = None if sampler is None else sampler.to(world.device)
    prepare_blocks(config.train, config.masking.schedule == "constant", mae, sampler)
    return Learner(
        config=config,
        world=world,
        runner=make_runner(mae, make_optimizer(mae, config.optim), config, world, bf16),
        sampler=sampler,
        sampler_optimizer=None if sampler is None else make_optimizer(sampler, config.optim),
        reward_scale=RewardScale.initial(world.device),
        generator=torch.Generator(world.device),
        bf16=bf16,
        statistics=compiled_statistics() if config.train.compile else token_statistics,
    )
