"""The loop around any training: order of clips, resume, signals, logs, skipped steps, checkpoints.

It knows no model and no loss. A subclass says what is trained (``make_learner``), what a step is
(``train_step``) and what is measured; see ``pretrain/trainer.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tats_fast.config import ConfigError, Failure, TrainingConfig, save_config
from tats_fast.data.bad_files import BadFileRecord, one_field
from tats_fast.data.loader import ClipBatch
from tats_fast.data.order import ClipKey
from tats_fast.data.pyav import require_pyav
from tats_fast.engine import run_lock
from tats_fast.engine.boards import open_boards, require_loggers
from tats_fast.engine.checkpoint import Position, Savable, collect, load_checkpoint
from tats_fast.engine.distributed import ANSWER_WITHIN, World, lost_process
from tats_fast.engine.exchange import across
from tats_fast.engine.finite import SkippedSteps, kept
from tats_fast.engine.logs import RunLog, SilentLog, recorded
from tats_fast.engine.meter import Meter
from tats_fast.engine.optim import LR_REFERENCE_BATCH
from tats_fast.engine.precision import wants_bf16
from tats_fast.engine.resume import checkpoint_to_resume, hold_to_train, leave_behind
from tats_fast.engine.saving import Saving
from tats_fast.engine.signals import StopRequest
from tats_fast.engine.videos import Loader, listed_videos, listing, make_run_loader, total_steps
from tats_fast.engine.words import continuing, ended

LOGGER = logging.getLogger("tats_fast")


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one step leaves for the next logged line; numbers stay on the device."""

    metrics: dict[str, Tensor]
    keys: list[ClipKey]
    videos: list[int]
    bad: list[tuple[str, str]]
    on_host: int

    @classmethod
    def of(cls, metrics: dict[str, Tensor], batches: Sequence[ClipBatch]) -> _Step:
        return cls(
            metrics,
            [key for batch in batches for key in batch.keys],
            [number for batch in batches for number in batch.videos],
            [entry for batch in batches for entry in batch.bad],
            sum(batch.on_host for batch in batches),
        )


class TrainingLoop(ABC):
    """One run of ``config``; ``learner`` is what its steps change.

    Raises at construction, before any training:
        ConfigError: missing data, an impossible setting, a checkpoint of another model.
    """

    columns: tuple[tuple[str, str, str], ...]
    """Metrics on the progress line: name, label, format."""
    next_commands: tuple[str, ...]
    """What to do with a finished run, with ``{run}`` for its folder."""

    def __init__(self, config: TrainingConfig, world: World, writes: bool = True) -> None:
        if config.listed_per_step and config.data.train is None:
            raise ConfigError(
                "data.train=None: give a list file or a folder of videos, "
                "for example data.train=demo/clips/train"
            )
        require_pyav()
        world.from_main(lambda: require_loggers(config))
        self.config, self.world, self._writes = config, world, writes
        self.folder = Path(config.output_dir) / config.name
        try:
            self._prepare()
        except BaseException:
            run_lock.release(self.folder)
            raise

    def _prepare(self) -> None:
        """All that can fail before training. A run folder that exists is locked from the start; a
        new one is made when nothing stands in the way."""
        config, world = self.config, self.world
        world.from_main(lambda: run_lock.hold(self.folder) if self.folder.is_dir() else None)
        self.resume_from = checkpoint_to_resume(self.folder, config.train.resume, world)
        from_list = config.listed_per_step
        self.videos = listed_videos(config.data, "train", world.is_main) if from_list else []
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
        self._changed: list[str] = []
        if self.resume_from is not None:
            self.position, self._changed = load_checkpoint(
                self.resume_from, self.learner, config, listing(self.videos)
            )
        if self._writes:
            world.from_main(lambda: hold_to_train(self.folder, self.resume_from))
        if world.is_main and self._writes:
            save_config(config, self.folder / "config.yaml")
        self.bad_files = BadFileRecord(
            self.folder / "bad_files.txt",
            len(self.videos),
            config.data.max_bad_fraction,
            writes=world.is_main and self._writes,
        )
        self._saving = Saving(self.folder)
        self._skipped = SkippedSteps(self.folder, config.train.max_skipped, world.is_main)

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

    def evaluations(self) -> list[str]:
        """What is to be measured on held-out videos at this position, each by a key of its line in
        ``eval.jsonl``. Asked before the first step and after each."""
        return []

    def evaluate(self, due: Sequence[str], log: RunLog | SilentLog) -> None:  # noqa: B027
        """Measure what ``evaluations`` named. All processes call it."""

    def picture(self, log: RunLog | SilentLog) -> None:  # noqa: B027
        """Log pictures, if any are due after this step."""

    def run(self) -> Position:
        """Train to the last step; saves at the end and whenever the run stops early.

        Raises:
            Stopped: SIGINT or SIGTERM, after the step in progress was finished and saved.
            NonFiniteLoss, TooManyBadFiles: the last good checkpoint is left as it is.
            NotSaved: the end could not be saved.
            Failure: another process of the run is gone.
        """
        try:
            return self._run()
        except RuntimeError as error:
            lost = lost_process(error)
            if lost is None or isinstance(error, Failure):
                raise
            raise Failure(f"step {self.position.step + 1}: {lost}; {kept(self.folder)}") from error
        finally:
            try:
                self._saving.wait()
            finally:
                run_lock.release(self.folder)

    def _run(self) -> Position:
        done = self.position.step >= self.total_steps
        if done and not self._unrecorded():
            LOGGER.info(
                "%s is already trained to step %d; raise train.steps to go on, or choose another "
                "name=... to start afresh",
                self.folder,
                self.position.step,
            )
            return self.position
        notes = self._notes(self.world.from_main(self._leave_behind))
        # Lines of a run without a checkpoint are not this one's.
        step = self.position.step if self.resume_from is not None else -1
        log: RunLog | SilentLog = SilentLog()
        if self.world.is_main:
            boards = open_boards(self.config, self.folder, step)
            log = RunLog(self.folder, step, self.total_steps, self.columns, boards)
        with contextlib.closing(log), StopRequest(self.world) as request:
            log.message("\n".join([*self.describe(), *notes]))
            if self.resume_from is not None and not self._is_own(self.resume_from):
                # So that train.resume=auto finds this history, not an earlier one.
                self._save(wait=True)
            # What a kill between saving and evaluating kept from being measured, or step 0.
            self._evaluate(self._unrecorded(), log)
            if not done:
                with contextlib.closing(self.loader()) as loader:
                    self._loop(log, loader, request)
                log.message(ended(self.folder, self.position.step, log.numbers, self.next_commands))
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
        config = self.config
        return self.position.windows * config.listed_per_step // max(1, config.windows_per_step)

    def _loop(self, log: RunLog | SilentLog, loader: Loader, request: StopRequest) -> None:
        train, exchange = self.config.train, self.learner.runner.exchange
        meter = Meter(self.world, self.bf16, exchange)
        # A file that hangs its reader holds one process up for twice the time limit.
        within = max(ANSWER_WITHIN, 2 * self.config.data.timeout_s + 20)
        window: list[_Step] = []
        batches = iter(loader)
        compiling = train.compiles(self.world.device.type)
        while not self.finished:
            with meter.waiting():
                micro_batches = [next(batches) for _ in range(train.accumulation)]
            start = time.monotonic()
            meter.watch((self.position.step + 1) % train.log_every == 0)
            metrics = self.train_step(micro_batches)
            if within is not None:
                self.world.answer_within(within)
                within = None
            if compiling:
                seconds, compiling = time.monotonic() - start, False
                log.message(f"first step: {seconds:.0f} s, compiling included (train.compile)")
            window.append(_Step.of(metrics, micro_batches))
            step = self.position.step + 1
            taken = self.position.windows + self.config.windows_per_step
            self.position = dataclasses.replace(self.position, step=step, windows=taken)
            stop = request.agreed()
            save = stop or self.due(train.checkpoint_every)
            save = save or (train.keep_best and self.evaluations())
            if save or step % train.log_every == 0:
                log.metrics(self._summary(window, meter, loader))
                window = []
            self.picture(log)
            if self.finished and self._skipped.in_row > 0:
                raise self._skipped.failure(step)
            if stop or (save and self._skipped.in_row == 0):
                self._save(wait=stop or self.finished)
            if stop:
                raise request.stopped()
            with meter.paused():
                self._evaluate(self.evaluations(), log)

    def loader(self) -> Loader:
        """This process's micro-batches from where the run stands."""
        return make_run_loader(
            self.config, self.world, self.videos, self.clip_shape(), self.position.windows
        )

    def _evaluate(self, due: Sequence[str], log: RunLog | SilentLog) -> None:
        if due:
            self.evaluate(due, log)
            self.world.barrier()

    def _unrecorded(self) -> list[str]:
        """Evaluations due at this position that are not on record; the same on all processes."""
        return self.world.from_main(
            lambda: sorted(set(self.evaluations()) - recorded(self.folder, self.position.step))
        )

    def _save(self, wait: bool = False) -> None:
        """Copy what a checkpoint holds, which is then written beside the training. With ``wait`` it
        is there on return, or ``NotSaved`` is raised."""
        # Of all, as none but the first writes: while it waits alone, the others give it up.
        self.world.from_main(self._saving.wait)
        source = None if self.config.train.resume == "auto" else self.resume_from
        contents = collect(
            self.folder, self.learner, self.config, self.position, listing(self.videos)
        )
        if contents is not None:
            self._saving.start(contents, source, must=wait)
        if wait:
            self.world.from_main(self._saving.wait)

    def _leave_behind(self) -> str | None:
        if self.resume_from is None:
            return None
        return leave_behind(self.folder, self.resume_from, self.position.step)

    def _is_own(self, checkpoint: Path) -> bool:
        return checkpoint.resolve().parent == (self.folder / "checkpoints").resolve()

    def _notes(self, moved: str | None) -> list[str]:
        """What a run that resumes has to say at its start."""
        notes = [] if moved is None else [moved]
        if self.resume_from is not None:
            notes.append(continuing(self.resume_from, self.position.step, self.total_steps))
        if self._changed:
            notes.append(f"changed since {self.resume_from.name}: {'; '.join(self._changed)}")
        return notes

    def _summary(self, window: list[_Step], meter: Meter, loader: Loader) -> dict[str, Any]:
        """Means over the finite steps since the last summary; a logged step's one host sync."""
        names = sorted({name for step in window for name in step.metrics})
        nothing = torch.full((), math.nan, device=self.world.device)
        rows = [torch.stack([step.metrics.get(name, nothing) for name in names]) for step in window]
        table = torch.stack(rows).cpu()
        skipped = table[:, names.index("skipped")].bool()
        flags = skipped.tolist()
        if any(flags):  # what may be said of the newest checkpoint must be true
            self.world.from_main(self._saving.wait)
        clips = [[[key.epoch, self.videos[key.index].path] for key in step.keys] for step in window]
        self._skipped.note(self.position.step - len(flags) + 1, flags, clips)
        means = dict(zip(names, table[~skipped].nanmean(dim=0).tolist(), strict=True))
        # Every process hears of every bad file, so that all stop together at the limit.
        read = {self.videos[number].path for step in window for number in step.videos}
        config, windows, steps = self.config, self.config.windows_per_step, len(window)
        speed = meter.report(steps * config.clips_per_step, self.flop_per_clip(), steps)
        loaded = self.world.gather(
            (
                [entry for step in window for entry in step.bad],
                [path for path in read if one_field(path) in self.bad_files.failing],
                sum(step.on_host for step in window),
                loader.replaced_workers,
                speed,
            )
        )
        found, paths, on_host, replaced, speeds = zip(*loaded, strict=True)
        bad = [entry for entries in found for entry in entries]
        self.bad_files.record(bad, [path for part in paths for path in part])
        self.position = dataclasses.replace(
            self.position,
            skipped_clips=self.position.skipped_clips + len(bad),
            skipped_steps=self.position.skipped_steps + int(skipped.sum()),
        )
        videos = len(self.videos) or math.nan
        return {
            "step": self.position.step,
            "epoch": self._listed() / videos,
            "passes": self.position.windows / videos,
            **self.row(),
            **{name: means[name] for name in names if name != "skipped"},
            **across(speeds),
            "host_decoded_frac": sum(on_host) / (steps * max(1, windows)),
            "replaced_workers": sum(replaced),
            "skipped_clips": self.position.skipped_clips,
            "skipped_steps": self.position.skipped_steps,
        }
