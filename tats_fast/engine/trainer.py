"""The training loop: wires data, models, step, logs and checkpoints; holds no maths of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tats_fast.config import ConfigError, RunConfig, save_config
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.data import (
    BadFiles,
    ClipBatch,
    ClipKey,
    ClipLoader,
    StreamBatches,
    Video,
    drop_quarantined,
    load_eval_clips,
    make_loader,
    read_videos,
)
from tats_fast.engine.blocks import compiled_statistics, prepare_blocks
from tats_fast.engine.checkpoint import (
    Position,
    checkpoint_to_resume,
    load_checkpoint,
    save_checkpoint,
)
from tats_fast.engine.describe import describe, kernel_levels
from tats_fast.engine.distributed import World
from tats_fast.engine.evaluate import evaluate
from tats_fast.engine.logs import RunLog, SilentLog
from tats_fast.engine.optim import lr_at, make_optimizer
from tats_fast.engine.runner import make_runner
from tats_fast.engine.step import Learner, StepPlan, train_step
from tats_fast.engine.usage import Meter
from tats_fast.masking import mask_ratio_at, visible_tokens
from tats_fast.models.load import build_models
from tats_fast.models.patchify import token_statistics
from tats_fast.report.pictures import mask_sheet
from tats_fast.rl import RewardScale
from tats_fast.rl.reward import initial_value

LOGGER = logging.getLogger("tats_fast")


class NonFiniteLoss(RuntimeError):
    """``train.max_skipped`` steps in a row had a loss that is not a number."""


class Stopped(Exception):
    """A signal asked the run to end; the state is saved. ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one step leaves for the next logged line; numbers stay on the device."""

    metrics: dict[str, torch.Tensor]
    keys: list[ClipKey]
    bad: list[tuple[str, str]]
    on_host: int

    @classmethod
    def of(cls, metrics: dict[str, torch.Tensor], batches: Sequence[ClipBatch]) -> _Step:
        return cls(
            metrics,
            [key for batch in batches for key in batch.keys],
            [entry for batch in batches for entry in batch.bad],
            sum(batch.on_host for batch in batches),
        )


class Trainer:
    """One pretraining run.

    Raises at construction, before any training:
        ConfigError: missing data, an impossible setting, a checkpoint of another model.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        if config.data.train is None:
            raise ConfigError(
                "data.train=None: give a list file or a folder of videos, "
                "for example data.train=demo/clips/train"
            )
        self.config, self.world = config, world
        self.folder = Path(config.output_dir) / config.name
        resume_from = checkpoint_to_resume(self.folder, config.train.resume)
        self.videos = self._read_videos("train")
        self.total_steps = total_steps(config, len(self.videos))
        self.eval_clips = self._load_eval_clips()
        self.learner = make_learner(config, world)
        if resume_from is None:
            self.position = Position()
        else:
            self.position = load_checkpoint(resume_from, self.learner)
        if world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(config, self.folder / "config.yaml")
        self.bad_files = BadFiles(
            self.folder / "bad_files.txt",
            len(self.videos),
            config.data.max_bad_fraction,
            writes=world.is_main,
        )
        self._skipped_in_row = 0
        self._signal: int | None = None

    def run(self) -> Position:
        """Train to the last step; saves at the end and whenever the run stops early.

        Raises:
            Stopped: SIGINT or SIGTERM, after the step in progress was finished and saved.
            NonFiniteLoss, TooManyBadFiles: the last good checkpoint is left as it is.
        """
        if self.position.step >= self.total_steps:
            LOGGER.info(
                "%s is already trained to step %d; raise train.steps to go on, or choose another "
                "name=... to start afresh",
                self.folder,
                self.position.step,
            )
            return self.position
        log = (
            RunLog(self.folder, self.position.step, self.total_steps)
            if self.world.is_main
            else SilentLog()
        )
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            log.message(describe(self.config, self.world, len(self.videos), self.total_steps))
            if self.position.step == 0:
                self._evaluate(log)
            with contextlib.closing(self._loader()) as loader:
                self._loop(log, loader)
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            log.close()
        return self.position

    def _loop(self, log: RunLog | SilentLog, loader: ClipLoader) -> None:
        train, meter = self.config.train, Meter(self.world.device)
        window: list[_Step] = []
        batches = iter(loader)
        while self.position.step < self.total_steps:
            with meter.waiting():
                micro_batches = [next(batches) for _ in range(train.accumulation)]
            plan = self._plan()
            clips = [b.clips.to(self.world.device, non_blocking=True) for b in micro_batches]
            metrics = train_step(self.learner, clips, plan)
            window.append(_Step.of(metrics, micro_batches))
            step = self.position.step + 1
            self.position = dataclasses.replace(
                self.position, step=step, samples=self.position.samples + train.batch_size
            )
            last = step == self.total_steps
            save = last or step % train.checkpoint_every == 0
            if last or save or step % train.log_every == 0:
                log.metrics(self._summary(window, plan, meter, loader))
                window = []
            if train.image_every and self._due(train.image_every):
                self._log_picture(log)
            if save and self._skipped_in_row == 0:
                save_checkpoint(self.folder, self.learner, self.position)
            if last or (train.eval_every and step % train.eval_every == 0):
                with meter.paused():
                    self._evaluate(log)
            if self._should_stop(synced=not window):
                save_checkpoint(self.folder, self.learner, self.position)
                raise Stopped(self._signal or signal.SIGTERM)

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

    def _read_videos(self, split: str) -> list[Video]:
        """The videos of ``data.train`` or ``data.eval`` without the quarantined ones."""
        data = self.config.data
        listed = read_videos(getattr(data, split), data.root, key=f"data.{split}")
        kept = drop_quarantined(listed, data.quarantine)
        if len(kept) < len(listed) and self.world.is_main:
            LOGGER.info(
                "data.quarantine leaves out %d of the %d videos of data.%s",
                len(listed) - len(kept),
                len(listed),
                split,
            )
        return kept

    def _loader(self) -> ClipLoader:
        config, world = self.config, self.world
        repeats = config.data.repeats
        batches = StreamBatches(
            len(self.videos),
            config.seed,
            config.train.batch_size // repeats,
            world.rank,
            world.size,
            config.train.batch_size // (world.size * config.train.accumulation * repeats),
            start_sample=self.position.samples // repeats,
        )
        model = config.model
        return make_loader(
            self.videos,
            config.data,
            model.num_frames,
            model.image_size,
            config.seed,
            batches,
            world.device,
        )

    def _summary(
        self, window: list[_Step], plan: StepPlan, meter: Meter, loader: ClipLoader
    ) -> dict[str, Any]:
        """Means over the finite steps since the last summary; a logged step's one host sync."""
        names = sorted({name for step in window for name in step.metrics})
        nothing = torch.full((), math.nan, device=self.world.device)
        table = torch.stack(
            [torch.stack([step.metrics.get(name, nothing) for name in names]) for step in window]
        ).cpu()
        skipped = table[:, names.index("skipped")].bool()
        self._note_skipped(skipped.tolist(), [step.keys for step in window])
        means = dict(zip(names, table[~skipped].nanmean(dim=0).tolist(), strict=True))
        # Every process hears of every bad file, so that all stop together at the limit.
        loaded = self.world.gather(
            (
                [entry for step in window for entry in step.bad],
                sum(step.on_host for step in window),
                loader.replaced_workers,
            )
        )
        bad = [entry for entries, _, _ in loaded for entry in entries]
        self.bad_files.record(bad)
        self.position = dataclasses.replace(
            self.position,
            skipped_clips=self.position.skipped_clips + len(bad),
            skipped_steps=self.position.skipped_steps + int(skipped.sum()),
        )
        train, repeats = self.config.train, self.config.data.repeats
        windows = len(window) * train.batch_size // repeats
        return {
            "step": self.position.step,
            "epoch": self.position.samples / len(self.videos),
            "passes": self.position.samples / repeats / len(self.videos),
            "lr": plan.lr,
            "mask_ratio": 1 - plan.visible / self.config.model.num_tokens,
            "strategy": "random (warm-up)" if plan.warmup else self.config.masking.strategy,
            **{name: means[name] for name in names if name != "skipped"},
            **meter.report(len(window), train.batch_size),
            "host_decoded_frac": sum(on_host for _, on_host, _ in loaded) / windows,
            "replaced_workers": sum(replaced for _, _, replaced in loaded),
            "skipped_clips": self.position.skipped_clips,
            "skipped_steps": self.position.skipped_steps,
        }

    def _note_skipped(self, skipped: list[bool], keys: list[list[ClipKey]]) -> None:
        """Count non-finite steps in a row, keep their clips' names, stop past the limit."""
        first = self.position.step - len(skipped)
        for offset, flag in enumerate(skipped):
            self._skipped_in_row = self._skipped_in_row + 1 if flag else 0
            if not flag:
                continue
            LOGGER.warning("step %d skipped: its loss is not finite", first + offset + 1)
            if self.world.is_main:
                names = [[key.epoch, self.videos[key.index].path] for key in keys[offset]]
                with (self.folder / "skipped_steps.jsonl").open("a") as file:
                    file.write(json.dumps({"step": first + offset + 1, "clips": names}) + "\n")
            if self._skipped_in_row >= self.config.train.max_skipped:
                raise NonFiniteLoss(
                    f"the loss was not finite for {self._skipped_in_row} steps in a row (to step "
                    f"{first + offset + 1}); the last good checkpoint is kept in {self.folder}; "
                    "lower optim.base_lr or set optim.grad_clip=1"
                )

    def _load_eval_clips(self) -> torch.Tensor | None:
        """Held-out clips, on the first process alone (weights are the same on all)."""
        config = self.config
        if config.data.eval is None or not self.world.is_main:
            return None
        videos = self._read_videos("eval")
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

    def _evaluate(self, log: RunLog | SilentLog) -> None:
        if self.eval_clips is not None:
            learner = self.learner
            mae = learner.runner.module
            values = evaluate(self.config, mae, learner.sampler, self.eval_clips, learner.bf16)
            log.evaluation({"step": self.position.step, **values})
        self.world.barrier()

    def _log_picture(self, log: RunLog | SilentLog) -> None:
        if self.eval_clips is not None:
            learner = self.learner
            sheet = mask_sheet(
                self.config, learner.runner.module, learner.sampler, self.eval_clips[:4]
            )
            log.image("sampled_masks", sheet, self.position.step)

    def _due(self, every: int) -> bool:
        return self.position.step % every == 0 or self.position.step == self.total_steps

    def _on_signal(self, signum: int, _frame: Any) -> None:
        self._signal = signum
        LOGGER.warning(
            "%s: finishing the step and saving; once more to stop at once",
            signal.Signals(signum).name,
        )
        signal.signal(signum, signal.SIG_DFL)

    def _should_stop(self, synced: bool) -> bool:
        """All processes must agree; they ask each other only at logged steps, which sync anyway."""
        if self.world.size == 1:
            return self._signal is not None
        return synced and self.world.any_of(self._signal is not None)


def total_steps(config: RunConfig, num_videos: int) -> int:
    """Optimizer steps of the run: ``train.steps``, or ``train.epochs`` passes over the list."""
    if config.train.steps is not None:
        return config.train.steps
    return math.ceil(config.train.epochs * num_videos / config.train.batch_size)


def make_learner(config: RunConfig, world: World) -> Learner:
    """Seeded models and optimizers on this process's device."""
    torch.manual_seed(config.seed)  # the same weights on every process
    bf16 = config.train.precision == "bf16" or (
        config.train.precision == "auto" and world.device.type == "cuda"
    )
    try:
        kernel_levels(world.device.type)
        mae, sampler = build_models(config, world.device.type, initial_value(config.ppo.credit))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    mae = mae.to(world.device)
    sampler = None if sampler is None else sampler.to(world.device)
    prepare_blocks(config, mae, sampler)
    return Learner(
        config=config,
        world=world,
        runner=make_runner(mae, config, world, bf16),
        sampler=sampler,
        sampler_optimizer=None if sampler is None else make_optimizer(sampler, config.optim),
        reward_scale=RewardScale.initial(world.device),
        generator=torch.Generator(world.device),
        bf16=bf16,
        statistics=compiled_statistics() if config.train.compile else token_statistics,
    )
