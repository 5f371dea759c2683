"""The loop around any training: order of clips, resume, signals, logs, skipped steps, checkpoints.

It knows no model and no loss. A subclass says what is trained (``make_learner``), what a step is
(``train_step``) and what is measured; see ``pretrain/trainer.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tats_fast.config import ConfigError, Failure, TrainingConfig, save_config
from tats_fast.data.bad_files import BadFileRecord, drop_quarantined
from tats_fast.data.lists import Video, read_videos
from tats_fast.data.loader import ClipBatch, make_loader
from tats_fast.data.order import ClipKey, StreamBatches
from tats_fast.data.pyav import require_pyav
from tats_fast.engine.checkpoint import (
    Position,
    Savable,
    checkpoint_to_resume,
    load_checkpoint,
    save_checkpoint,
)
from tats_fast.engine.distributed import World
from tats_fast.engine.logs import RunLog, SilentLog
from tats_fast.engine.meter import Meter
from tats_fast.engine.optim import LR_REFERENCE_BATCH
from tats_fast.engine.precision import wants_bf16

LOGGER = logging.getLogger("tats_fast")


class NonFiniteLoss(Failure):
    """``train.max_skipped`` steps in a row had a loss that is not a number."""


class Stopped(Exception):
    """A signal asked the run to end; the state is saved. ``signum`` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one step leaves for the next logged line; numbers stay on the device."""

    metrics: dict[str, Tensor]
    keys: list[ClipKey]
    bad: list[tuple[str, str]]
    on_host: int

    @classmethod
    def of(cls, metrics: dict[str, Tensor], batches: Sequence[ClipBatch]) -> _Step:
        return cls(
            metrics,
            [key for batch in batches for key in batch.keys],
            [entry for batch in batches for entry in batch.bad],
            sum(batch.on_host for batch in batches),
        )


class Loader(Protocol):
    """What the loop needs of whatever brings its micro-batches, endlessly and in order."""

    replaced_workers: int

    def __iter__(self) -> Iterator[ClipBatch]: ...

    def close(self) -> None: ...


class TrainingLoop(ABC):
    """One run of ``config``; ``learner`` is what its steps change.

    Raises at construction, before any training:
        ConfigError: missing data, an impossible setting, a checkpoint of another model.
    """

    columns: tuple[tuple[str, str, str], ...]
    """Metrics on the progress line: name, label, format."""

    def __init__(self, config: TrainingConfig, world: World) -> None:
        from_list = config.listed_per_step
        if from_list and config.data.train is None:
            raise ConfigError(
                "data.train=None: give a list file or a folder of videos, "
                "for example data.train=demo/clips/train"
            )
        require_pyav()
        self.config, self.world = config, world
        self.folder = Path(config.output_dir) / config.name
        self.resume_from = checkpoint_to_resume(self.folder, config.train.resume)
        self.videos = self.read_videos("train") if from_list else []
        self.total_steps = total_steps(config, len(self.videos))
        if from_list > len(self.videos) and world.is_main:
            LOGGER.warning(
                "train.batch_size=%d takes more than the %d listed videos: every step sees some of "
                "them several times",
                config.train.batch_size,
                len(self.videos),
            )
        self.bf16 = wants_bf16(config.train.precision, world.device)
        self.learner = self.make_learner()
        self.position = Position()
        if self.resume_from is not None:
            self.position = load_checkpoint(self.resume_from, self.learner, config)
        if world.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(config, self.folder / "config.yaml")
        self.bad_files = BadFileRecord(
            self.folder / "bad_files.txt",
            len(self.videos),
            config.data.max_bad_fraction,
            writes=world.is_main,
        )
        self._skipped_in_row = 0
        self._signal: int | None = None

    @abstractmethod
    def make_learner(self) -> Savable:
        """Models, optimizers and whatever else steps change; reads what the run needs besides its
        videos. ``resume_from`` is loaded into it afterwards."""

    @abstractmethod
    def clip_shape(self) -> tuple[int, int]:
        """Frames and side in pixels of a clip."""

    @abstractmethod
    def describe(self) -> list[str]:
        """Lines on what silently decides a result, for the start of the run."""

    @abstractmethod
    def train_step(self, batches: list[ClipBatch]) -> dict[str, Tensor]:
        """Train on this process's micro-batches of step ``position.step``: 0-d tensors on the
        device by name, ``skipped`` among them."""

    @abstractmethod
    def row(self) -> dict[str, Any]:
        """What a logged line says besides means, speed and files, for the step just done."""

    @abstractmethod
    def flop_per_clip(self) -> float:
        """Model FLOP that the step just done took per clip, backward pass included."""

    def describe_run(self, videos: str, batch: str) -> list[str]:
        """The lines that every training starts with.

        Args:
            videos: what it trains on.
            batch: what a micro-batch consists of.
        """
        config, world, train, optim = self.config, self.world, self.config.train, self.config.optim
        scale = train.batch_size / LR_REFERENCE_BATCH
        micro = train.batch_size // (world.size * train.accumulation)
        return [
            f"run {self.folder}: {videos}, {self.total_steps} steps, {world.size} process(es) on "
            f"{world.device.type} ({config.distributed.engine}), "
            f"{'bf16 autocast' if self.bf16 else 'fp32'}",
            f"global batch {train.batch_size} = {world.size} processes x {train.accumulation} "
            f"micro-batches x {micro} {batch}; learning rate {optim.base_lr * scale:.3g} peak, "
            f"{optim.min_lr * scale:.3g} at the end (base {optim.base_lr:g} x {train.batch_size}/"
            f"{LR_REFERENCE_BATCH})",
        ]

    def evaluate(self, log: RunLog | SilentLog) -> None:  # noqa: B027
        """Measure on held-out videos: called before the first step and after each."""

    def picture(self, log: RunLog | SilentLog) -> None:  # noqa: B027
        """Log pictures, if any are due after this step."""

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
            RunLog(self.folder, self.position.step, self.total_steps, self.columns)
            if self.world.is_main
            else SilentLog()
        )
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            log.message("\n".join(self.describe()))
            if self.position.step == 0:
                self.evaluate(log)
            with contextlib.closing(self.loader()) as loader:
                self._loop(log, loader)
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            log.close()
        return self.position

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.position.step == self.total_steps

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; it does at the end."""
        return self.finished or self.position.step % every == 0

    def due_after_passes(self, every: int) -> bool:
        """The same for every so many passes over the list; without a list, at the end alone."""
        step, period = self.config.listed_per_step, every * len(self.videos)
        if self.finished or not period:
            return self.finished
        return self._listed() // period > (self._listed() - step) // period

    def _listed(self) -> int:
        """Samples that came from the list so far."""
        train = self.config.train
        return self.position.samples * self.config.listed_per_step // train.batch_size

    def _loop(self, log: RunLog | SilentLog, loader: Loader) -> None:
        train, meter = self.config.train, Meter(self.world, self.bf16)
        window: list[_Step] = []
        batches = iter(loader)
        compiling = train.compiles(self.world.device.type)
        while not self.finished:
            with meter.waiting():
                micro_batches = [next(batches) for _ in range(train.accumulation)]
            start = time.monotonic()
            metrics = self.train_step(micro_batches)
            if compiling:
                seconds, compiling = time.monotonic() - start, False
                log.message(f"first step: {seconds:.0f} s, compiling included (train.compile)")
            window.append(_Step.of(metrics, micro_batches))
            step = self.position.step + 1
            self.position = dataclasses.replace(
                self.position, step=step, samples=self.position.samples + train.batch_size
            )
            save = self.due(train.checkpoint_every)
            if save or step % train.log_every == 0:
                log.metrics(self._summary(window, meter, loader))
                window = []
            self.picture(log)
            if save and self._skipped_in_row == 0:
                self._save()
            with meter.paused():
                self.evaluate(log)
            if self._should_stop(synced=not window):
                self._save()
                raise Stopped(self._signal or signal.SIGTERM)

    def _save(self) -> None:
        save_checkpoint(self.folder, self.learner, self.config, self.position)

    def read_videos(self, split: str) -> list[Video]:
        """The videos of ``data.train`` or ``data.eval`` without the quarantined ones."""
        data = self.config.data
        listed = read_videos(getattr(data, split), data.root, key=f"data.{split}")
        videos = drop_quarantined(listed, data.quarantine)
        if len(videos) < len(listed) and self.world.is_main:
            LOGGER.info(
                "data.quarantine leaves out %d of the %d videos of data.%s",
                len(listed) - len(videos),
                len(listed),
                split,
            )
        return videos

    def loader(self) -> Loader:
        """This process's micro-batches from where the run stands."""
        config, world = self.config, self.world
        windows = config.windows_per_step
        batches = StreamBatches(
            len(self.videos),
            config.seed,
            windows,
            world.rank,
            world.size,
            windows // (world.size * config.train.accumulation),
            start_sample=self.position.samples * windows // config.train.batch_size,
        )
        return make_loader(
            self.videos, config.data, *self.clip_shape(), config.seed, batches, world.device
        )

    def _summary(self, window: list[_Step], meter: Meter, loader: Loader) -> dict[str, Any]:
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
        config, windows = self.config, self.config.windows_per_step
        videos = len(self.videos) or math.nan
        return {
            "step": self.position.step,
            "epoch": self._listed() / videos,
            "passes": self.position.samples * windows / config.train.batch_size / videos,
            **self.row(),
            **{name: means[name] for name in names if name != "skipped"},
            **meter.report(len(window) * config.clips_per_step, self.flop_per_clip()),
            "host_decoded_frac": sum(n for _, n, _ in loaded) / (len(window) * max(1, windows)),
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


def total_steps(config: TrainingConfig, num_videos: int) -> int:
    """Optimizer steps of the run: ``train.steps``, or ``train.epochs`` passes over the list."""
    if config.train.steps is not None:
        return config.train.steps
    return math.ceil(config.train.epochs * num_videos / config.listed_per_step)
