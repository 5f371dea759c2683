"""One optimizer step of fine-tuning: (learner, clips, labels, plan) -> metrics on the device.

Nothing waits for the device. Legend: G videos, R repeats, B = G R clips, T frames, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from tats_fast.config import ConfigError
from tats_fast.config.finetune import AugmentConfig
from tats_fast.engine.average import WeightAverage
from tats_fast.engine.distributed import World, draw_seed
from tats_fast.engine.optim import any_not_finite
from tats_fast.engine.precision import autocast
from tats_fast.engine.runner import Runner
from tats_fast.engine.zero3 import filled
from tats_fast.finetune.augment.mixing import mix, random_erase, soft_cross_entropy
from tats_fast.finetune.augment.rand_augment import rand_augment
from tats_fast.models.classifier import VideoClassifier
from tats_fast.models.patchify import normalised_video

# Keeps the host's draws of a step apart from other users of (seed, step, rank).
_AUGMENT = 4
# Flips bits of the seed for what models draw by themselves, from the default generator.
_DROPOUT = 0b101


@dataclass
class ClassifierLearner:
    """The state that a fine-tuning step changes, and what the step needs."""

    augment: AugmentConfig
    seed: int
    world: World
    runner: Runner
    generator: Generator
    bf16: bool
    class_weights: Tensor | None
    """(K,) fp32 on the device; none = all alike."""
    average: WeightAverage | None
    """None = not kept."""
    twin: VideoClassifier | None = None
    """For ``whole``, where no process has all weights."""

    @property
    def module(self) -> VideoClassifier:
        """The bare classifier, with the weights that train."""
        return self.runner.module

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the runner has the weights that count: the averaged ones, if an average is kept.
        What it then gives is whole, but no step may be taken."""
        with contextlib.nullcontext() if self.average is None else self.average.in_place():
            yield

    @contextlib.contextmanager
    def whole(self) -> Iterator[VideoClassifier]:
        """The classifier to evaluate, whole on every process. All processes enter it."""
        with self.averaged():
            if self.twin is None:
                yield self.module
                return
            weights = self.runner.weights(everywhere=True)
        with filled(self.twin, weights, self.world.device) as classifier:
            yield classifier

    def model_state(self) -> dict[str, Any]:
        """All that the model is, without the run."""
        with self.averaged():
            state = {name: tensor.clone() for name, tensor in self.runner.weights().items()}
        encoder = self.module.encoder
        return {
            "classifier": state,
            "model": asdict(encoder.config),
            "classes": list(self.module.classes),
            "norm_eps": encoder.norm_eps,
        }

    def trainer_state(self) -> dict[str, Any]:
        """The weights that train, where those of the model are their average."""
        return {"weights": None if self.average is None else self.runner.weights()}

    def load_state(self, model: dict[str, Any], trainer: dict[str, Any]) -> None:
        """Take over what the two gave.

        Raises:
            ConfigError: its classes are others, or in another order; one line.
        """
        _require_same_classes(model["classes"], self.module.classes)
        stored = model["classifier"]
        if self.average is not None:
            self.runner.load_weights(stored)
            self.average.load(self.runner.parts())
        self.runner.load_weights(trainer["weights"] or stored)


def _require_same_classes(before: Sequence[str], now: Sequence[str]) -> None:
    """A row of the head is a class by its place alone."""
    for place, (old, new) in enumerate(zip_longest(before, now)):
        if old != new:
            raise ConfigError(
                f"train.resume: the checkpoint's class {place} is {old or 'none'}, the lists' is "
                f"now {new or 'none'}; name the classes as before, or choose another name=..."
            )


def finetune_step(
    learner: ClassifierLearner, clips: list[Tensor], labels: list[Tensor], step: int, lr: float
) -> dict[str, Tensor]:
    """Train on one global batch's share of this process.

    Args:
        clips: one uint8 tensor (B, T, S, S, 3) per micro-batch, on the device, the R clips of a
            video in a row.
        labels: their videos' classes, (G,) int64 each, on the device.
        step: optimizer steps done before this one.

    Returns:
        0-d tensors by name (docs/metrics.md), means over micro-batches and processes. ``skipped``
        is 1 where the loss or the gradient's norm was not finite and the update was left out.
    """
    rank = learner.world.rank
    learner.generator.manual_seed(draw_seed(learner.seed, step, rank))
    torch.manual_seed(draw_seed(learner.seed, step, rank) ^ _DROPOUT)
    rng = np.random.default_rng([learner.seed, step, rank, _AUGMENT])
    passes = []
    for index, (batch, label) in enumerate(zip(clips, labels, strict=True)):
        with learner.runner.accumulating(last=index == len(clips) - 1):
            passes.append(_micro_step(learner, batch, label, rng))
    names = sorted(passes[0])
    means = torch.stack([torch.stack([done[name] for name in names]) for done in passes]).mean(0)
    metrics = dict(zip(names, learner.world.mean(means).unbind(), strict=True))
    skip = any_not_finite(learner.world, [metrics["loss"]])
    skip, norm = learner.runner.step(lr, skip)
    if learner.average is not None:
        learner.average.update(skip)
    return {**metrics, "grad_norm": norm, "skipped": skip}


def _micro_step(
    learner: ClassifierLearner, clips: Tensor, labels: Tensor, rng: np.random.Generator
) -> dict[str, Tensor]:
    video, targets = augmented(learner, clips, labels, rng)
    with autocast(clips.device, learner.bf16):
        logits = learner.runner.forward(video)
    loss = soft_cross_entropy(logits, targets, learner.class_weights)
    learner.runner.backward(loss)
    right = logits.detach().argmax(1) == targets.argmax(1)
    return {"loss": loss.detach(), "train_top1": right.float().mean()}


@torch.no_grad()
def augmented(
    learner: ClassifierLearner, clips: Tensor, labels: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Clips (B, T, S, S, 3) uint8 and labels (G,) -> video (B, 3, T, S, S) fp32 and targets (B, K).

    RandAugment on bytes, then normalisation, random erasing, and mixup or cutmix within the batch.
    """
    augment, generator = learner.augment, learner.generator
    if augment.rand_ops:
        clips = rand_augment(
            clips,
            rng,
            ops=augment.rand_ops,
            magnitude=augment.rand_magnitude,
            deviation=augment.rand_deviation,
        )
    video = normalised_video(clips)
    if augment.erase:
        video = random_erase(video, generator, probability=augment.erase)
    return mix(
        video,
        labels.repeat_interleave(len(clips) // len(labels)),
        len(learner.module.classes),
        generator,
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        switch=augment.switch,
        smoothing=augment.smoothing,
    )
