"""The configuration of a fine-tuning run, ``tats-fast finetune``.

Defaults are VideoMAE's for Kinetics-400 but for ``data.flip`` and ``data.repeats``, which change
what labels may mean and what a step costs (configs/finetune has each dataset's, with its sources).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tats_fast.config.checks import require
from tats_fast.config.options import Options, option
from tats_fast.config.sampling import settle_sampling
from tats_fast.config.training import (
    Attention,
    DistributedConfig,
    LoopConfig,
    OptimConfig,
    Preset,
    TrainingConfig,
    VideosConfig,
    check_batch,
)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Options):
    """The encoder with a linear head. Sizes are those of ``init_from``."""

    section: ClassVar[str] = "model."

    preset: Preset | None = None
    """Sizes of an encoder that starts from nothing, where there is no ``init_from``."""
    image_size: int | None = option(None, at_least=1)
    """Side of the square input clip, pixels; none = as the encoder was trained."""
    num_frames: int | None = option(None, at_least=1)
    """Frames per clip; none = as the encoder was trained."""
    attention: Attention = "auto"
    """Attention backend, as in pretraining."""
    drop_path: float = option(0.1, at_least=0, at_most=1)
    """Probability of leaving out the last block's branches for a clip; rises linearly from 0 at
    the first block (stochastic depth)."""
    head_dropout: float = option(0.0, at_least=0, at_most=1)
    """Dropout before the linear head."""


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(VideosConfig):
    """Labelled videos, how training clips are cut, and which views a test looks at."""

    classes: str | None = None
    """File with the name of class 0, 1, ... on its lines; none = ``classes.txt`` beside ``train``
    if there is one, else the classes are the labels of ``train`` in order."""
    stride: int | None = option(None, at_least=0)
    """Frames between two sampled frames of a random window; 0 = a random frame from each of
    ``num_frames`` equal segments of the video (TSN; Something-Something); none = 4, or ``fps``."""
    fps: float | None = option(None, above=0)
    """Sampled frames per second, in training and tests, by the files' timestamps and whatever
    their own rates; in the place of ``stride``, which must then be null."""
    area: tuple[float, ...] = option((0.08, 1.0), above=0, at_most=1)
    """Least and greatest area of a random crop over the frame's."""
    aspect: tuple[float, ...] = option((0.75, 1.3333), above=0)
    """Least and greatest width over height of a random crop."""
    repeats: int = option(1, at_least=1)
    """Differently augmented clips of each decoded window within a step (repeated augmentation).
    ``train.batch_size`` counts videos, so a step sees ``repeats`` times as many clips."""
    clips: int = option(5, at_least=1)
    """Clips per video of a test, evenly over its length (of stride 0: interleaved)."""
    crops: int = option(3, at_least=1)
    """Square crops per clip of a test, along the long side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_sampling(self)
        for name in ("area", "aspect"):
            bounds = list(getattr(self, name))
            right = len(bounds) == 2 and bounds[0] <= bounds[1]
            require(right, f"data.{name}", bounds, "must be two numbers, the lesser first")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Options):
    """Augmentation and the loss's targets; every frame of a clip is treated alike."""

    section: ClassVar[str] = "augment."

    rand_ops: int = option(4, at_least=0)
    """RandAugment: operations drawn per clip; 0 = none."""
    rand_magnitude: float = option(7.0, at_least=0, at_most=10)
    """RandAugment: mean magnitude, 0 to 10."""
    rand_deviation: float = option(0.5, at_least=0)
    """RandAugment: standard deviation of the magnitude."""
    erase: float = option(0.25, at_least=0, at_most=1)
    """Probability of replacing a box of a clip by noise."""
    mixup: float = 0.8
    """alpha of mixup; 0 = none."""
    cutmix: float = 1.0
    """alpha of cutmix; 0 = none."""
    switch: float = option(0.5, at_least=0, at_most=1)
    """Probability of cutmix where both are on."""
    smoothing: float = option(0.1, at_least=0, at_most=1)
    """Label smoothing."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weighs a class by videos / (classes * videos of the class)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            require(alpha == 0 or 0.1 <= alpha <= 2, f"augment.{name}", alpha, "0, or 0.1 to 2")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimConfig(OptimConfig):
    """AdamW with layer-wise decay of the learning rate; rates are per 256 videos of the batch."""

    base_lr: float = option(1e-3, above=0)
    """Peak learning rate of the head per 256 videos."""
    min_lr: float = option(1e-6, at_least=0)
    """Last learning rate of the head per 256 videos."""
    betas: tuple[float, ...] = option((0.9, 0.999), at_least=0, below=1)
    """AdamW's two momenta."""
    layer_decay: float = option(0.75, above=0, at_most=1)
    """Learning rate of a layer over that of the layer above it."""


@dataclass(frozen=True, kw_only=True)
class FinetuneTrainConfig(LoopConfig):
    """The training loop. ``batch_size`` counts videos."""

    batch_size: int = option(512, at_least=1)
    """Global batch: videos per optimizer step over all ranks and accumulation."""
    epochs: int = option(100, at_least=1)
    """Passes over the list; ignored when ``steps`` is given."""
    eval_epochs: int = option(1, at_least=0)
    """Passes over the list between two quick evaluations on ``data.eval`` (one clip, middle crop);
    0 = none. After the last step comes one with all views."""
    ema_decay: float = option(0.0, at_least=0, below=1)
    """Decay per step of an exponential moving average of the weights, which is then what is
    evaluated and stored as the model; 0 = none."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """A fine-tuning run. Resolved and saved as ``runs/<name>/config.yaml``."""

    command: ClassVar[str] = "finetune"
    name: str = "finetune"
    """Name of the run's folder."""
    init_from: str | None = None
    """Pretrained encoder: a run, a checkpoint, a folder of Transformers, or a file that
    ``tats-fast import`` reads. None starts from nothing, with the sizes of ``model.preset``."""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None:
            require(
                self.model.preset is None,
                "model.preset",
                self.model.preset,
                "init_from has its own sizes; remove one of the two",
            )

    def check_world_size(self, world_size: int) -> None:
        """Raise ``ConfigError`` unless the batch splits evenly over ranks and micro-batches."""
        check_batch(
            self.train.batch_size,
            world_size=world_size,
            train__accumulation=self.train.accumulation,
        )

    @property
    def listed_per_step(self) -> int:
        return self.train.batch_size

    @property
    def windows_per_step(self) -> int:
        return self.train.batch_size

    @property
    def clips_per_step(self) -> int:
        return self.train.batch_size * self.data.repeats

    def identity(self) -> dict[str, Any]:
        return {
            "model.image_size": self.model.image_size,
            "model.num_frames": self.model.num_frames,
        }
