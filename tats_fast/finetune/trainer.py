"""Fine-tuning in the training loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tats_fast.config import ConfigError, FinetuneConfig
from tats_fast.config.options import chosen
from tats_fast.data.labels import classes_file
from tats_fast.data.loader import ClipBatch, resolved_backend
from tats_fast.engine.average import WeightAverage
from tats_fast.engine.logs import RunLog, SilentLog
from tats_fast.engine.loop import TrainingLoop
from tats_fast.engine.optim import lr_at, make_adamw
from tats_fast.engine.runner import make_runner
from tats_fast.engine.videos import listed_videos
from tats_fast.engine.zero3 import empty_twin
from tats_fast.finetune.augment.mixing import balanced_weights
from tats_fast.finetune.classes import label_classes
from tats_fast.finetune.layer_decay import parameter_groups
from tats_fast.finetune.model import make_classifier
from tats_fast.finetune.step import ClassifierLearner, finetune_step
from tats_fast.models import flops
from tats_fast.models.attention import choose_backend
from tats_fast.models.execution import prepare_blocks
from tats_fast.recognition.evaluation_result import (
    FOLDER,
    Evaluation,
    make_evaluation,
    percent,
    write_files,
)
from tats_fast.recognition.options import Views
from tats_fast.recognition.scores import class_scores, merged

LOGGER = logging.getLogger("tats_fast")
QUICK = {"clips": 1, "crops": 1}
EVAL_BATCH = 16  # views at once in an evaluation


class Finetuner(TrainingLoop):
    """One fine-tuning run."""

    config: FinetuneConfig
    learner: ClassifierLearner
    columns = (("loss", "loss", ".4f"), ("train_top1", "top-1 of mixed clips", ".3f"))
    next_commands = ("tats-fast evaluate --checkpoint {run}",)

    def make_learner(self) -> ClassifierLearner:
        config, world = self.config, self.world
        self.held_out = (
            None
            if config.data.eval is None
            else listed_videos(config.data, "eval", self.world.is_main)
        )
        self.labels, self.true, classes = label_classes(config.data, self.videos, self.held_out)
        torch.manual_seed(config.seed)  # the same head on every process
        source = self.resume_from or config.init_from
        classifier, notes = make_classifier(config.model, classes, source, world.device)
        if self.resume_from is None and world.is_main:
            for note in notes:
                LOGGER.info("init_from=%s: %s", config.init_from, note)
        split = config.distributed.splits_weights
        twin = empty_twin(classifier) if split else None
        prepare_blocks(config.train, world.device, True, classifier, split=split)
        weights, optim = None, config.optim
        if config.augment.class_weights == "balanced":
            weights = balanced_weights(self.labels, len(classes)).to(world.device)
        groups = parameter_groups(classifier, optim.weight_decay, optim.layer_decay)
        runner = make_runner(classifier, make_adamw(groups, optim), config, world, self.bf16)
        decay = config.train.ema_decay
        return ClassifierLearner(
            augment=config.augment,
            seed=config.seed,
            world=world,
            runner=runner,
            generator=torch.Generator(world.device),
            bf16=self.bf16,
            class_weights=weights,
            average=WeightAverage(runner.parts, decay) if decay > 0 else None,
            twin=twin,
        )

    def clip_shape(self) -> tuple[int, int]:
        model = self.learner.module.encoder.config
        return model.num_frames, model.image_size

    def train_step(self, batches: list[ClipBatch]) -> dict[str, Tensor]:
        config, step, device = self.config, self.position.step, self.world.device
        self._lr = lr_at(config.optim, step, self.total_steps, config.train.batch_size)
        clips = [batch.clips for batch in batches]
        # Of the videos that were read, where one stood in for another.
        labels = [self.labels[batch.videos].to(device, non_blocking=True) for batch in batches]
        return finetune_step(self.learner, clips, labels, step, self._lr)

    def row(self) -> dict[str, Any]:
        return {"lr": self._lr}

    def flop_per_clip(self) -> float:
        encoder = self.learner.module.encoder.config
        return flops.TRAINING_FACTOR * flops.classifier(encoder, len(self.learner.module.classes))

    def evaluations(self) -> list[str]:
        every = self.config.train.eval_epochs
        if self.held_out is None or self.position.step == 0:
            return []
        due = self.finished or (every > 0 and self.due_after_passes(every))
        return ["top1"] if due else []

    def evaluate(self, due: Sequence[str], log: RunLog | SilentLog) -> None:
        data = self.config.data
        views = Views(stride=data.stride, fps=data.fps, **QUICK)
        if self.finished:
            views = chosen(Views, data)
        evaluation = self._measure(views)
        if evaluation is not None:
            self._report(evaluation, views, log)

    def _measure(self, views: Views) -> Evaluation | None:
        """On the held-out videos, shared out among all processes; the first has the result."""
        data, world = self.config.data, self.world
        with self.learner.whole() as classifier:
            part = class_scores(
                classifier,
                self.held_out,
                views,
                batch_size=EVAL_BATCH,
                workers=data.workers,
                timeout=data.timeout_s,
                rank=world.rank,
                world_size=world.size,
            )
        parts = world.gather(part, patient=True)
        if not world.is_main:
            return None
        try:
            scored = merged(parts)
            return make_evaluation(
                classifier.classes, self.held_out, self.true, scored, "data.eval"
            )
        except ConfigError as error:
            LOGGER.warning("step %d cannot be evaluated: %s", self.position.step, error)
            return None

    def _report(self, evaluation: Evaluation, views: Views, log: RunLog | SilentLog) -> None:
        accuracy, bad = evaluation.accuracy, evaluation.scored.bad
        row = {
            "step": self.position.step,
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "mean_class": accuracy.mean_class,
            "views": views.clips * views.crops,
            "videos": len(evaluation.scored.numbers),
            "unreadable": len(bad),
        }
        text = f"held-out: top-1 {percent(accuracy.top1)}, {row['views']} view(s) of each of "
        text += f"{row['videos']} videos" + (f"; {len(bad)} unreadable" if bad else "")
        if self.finished:
            facts = {"checkpoint": str(self.folder), "views": vars(views), "step": row["step"]}
            write_files(self.folder / FOLDER, evaluation, facts)
            text += f"; see {self.folder / FOLDER}"
        log.evaluation(row, text)

    def _about_average(self) -> list[str]:
        """How much of the model will be no training at all."""
        decay = self.config.train.ema_decay
        left = decay**self.total_steps
        text = f"the average of the weights is the model; {left:.0%} of it will be starting weights"
        return [text] if decay > 0 else []

    def describe(self) -> list[str]:
        config, data, augment = self.config, self.config.data, self.config.augment
        model, classes = self.learner.module.encoder.config, self.learner.module.classes
        names, device = classes_file(data), self.world.device.type
        source = "from the labels" if names is None else f"names from {names}"
        sampling = chosen(Views, data).sampling
        return [
            *self.describe_run(
                f"{len(self.videos)} videos of {len(classes)} classes ({source})",
                f"videos, {data.repeats} clip(s) of each",
            ),
            f"{model.num_frames} frames of {model.image_size} x {model.image_size}, {sampling}, "
            f"flip {'on' if data.flip else 'off'}; RandAugment {augment.rand_ops} ops, erase "
            f"{augment.erase:g}, mixup {augment.mixup:g}, cutmix {augment.cutmix:g}, smoothing "
            f"{augment.smoothing:g}, drop path {config.model.drop_path:g}, head dropout "
            f"{config.model.head_dropout:g}, learning rate x {config.optim.layer_decay:g} per "
            "layer down",
            f"attention {choose_backend(model.attention, device)}, decoding "
            f"{resolved_backend(data.backend, device)} with {data.workers} worker(s); tested on "
            f"{data.clips} clips x {data.crops} crops",
            *self._about_average(),
        ]
