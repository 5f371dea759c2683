"""The configuration of a fine-tuning run, ``tats-fast finetune``.

Defaults are VideoMAE's for Kinetics-400 (configs/finetune has each dataset's, with its sources).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tats_fast.config.checks import require, require_fraction, require_positive
from tats_fast.config.training import (
    Attention,
    DistributedConfig,
    LoopConfig,
    OptimConfig,
    Preset,
    VideosConfig,
    check_batch,
    check_run_name,
)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The encoder with a linear head. Sizes are those of ``init_from``."""

    preset: Preset | None = None
    """Sizes of an encoder that starts from nothing, where there is no ``init_from``."""
    image_size: int | None = None
    """Side of the square input clip, pixels; none = as the encoder was trained."""
    num_frames: int | None = None
    """Frames per clip; none = as the encoder was trained."""
    attention: Attention = "auto"
    """Attention backend, as in pretraining."""
    drop_path: float = 0.1
    """Probability of leaving out the last block's branches for a clip; rises linearly from 0 at
    the first block (stochastic depth)."""
    head_dropout: float = 0.0
    """Dropout before the linear head."""

    def __post_init__(self) -> None:
        require_fraction("model", self, "drop_path", "head_dropout")
        for name in ("image_size", "num_frames"):
            if getattr(self, name) is not None:
                require_positive("model", self, name)


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig(VideosConfig):
    """Labelled videos, how training clips are cut, and which views a test looks at."""

    classes: str | None = None
    """File with the name of class 0, 1, ... on its lines; none = ``classes.txt`` beside ``train``
    if there is one, else the classes are the labels of ``train`` in order."""
    stride: int = 4
    """Frames between two sampled frames of a random window; 0 = a random frame from each of
    ``num_frames`` equal segments of the video (TSN; Something-Something)."""
    area: tuple[float, ...] = (0.08, 1.0)
    """Least and greatest area of a random crop over the frame's."""
    aspect: tuple[float, ...] = (0.75, 1.3333)
    """Least and greatest width over height of a random crop."""
    repeats: int = 1
    """Differently augmented clips of each decoded window within a step (repeated augmentation).
    ``train.batch_size`` counts videos, so a step sees ``repeats`` times as many clips."""
    clips: int = 5
    """Clips per video of a test, evenly over its length (of stride 0: interleaved)."""
    crops: int = 3
    """Square crops per clip of a test, along the long side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("data", self, "repeats", "clips", "crops")
        require(self.stride >= 0, "data.stride", self.stride, "must be 0 (segments) or more")
        for name, top in (("area", 1.0), ("aspect", float("inf"))):
            bounds = getattr(self, name)
            require(
                len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= top,
                f"data.{name}",
                list(bounds),
                f"must be two numbers, the lesser first, above 0{' and up to 1' * (top == 1)}",
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation and the loss's targets; every frame of a clip is treated alike."""

    rand_ops: int = 4
    """RandAugment: operations drawn per clip; 0 = none."""
    rand_magnitude: float = 7.0
    """RandAugment: mean magnitude, 0 to 10."""
    rand_deviation: float = 0.5
    """RandAugment: standard deviation of the magnitude."""
    erase: float = 0.25
    """Probability of replacing a box of a clip by noise."""
    mixup: float = 0.8
    """alpha of mixup; 0 = none."""
    cutmix: float = 1.0
    """alpha of cutmix; 0 = none."""
    switch: float = 0.5
    """Probability of cutmix where both are on."""
    smoothing: float = 0.1
    """Label smoothing."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weighs a class by videos / (classes * videos of the class)."""

    def __post_init__(self) -> None:
        require_fraction("augment", self, "erase", "switch", "smoothing")
        require(self.rand_ops >= 0, "augment.rand_ops", self.rand_ops, "must be 0 or more")
        magnitude, deviation = self.rand_magnitude, self.rand_deviation
        require(0 <= magnitude <= 10, "augment.rand_magnitude", magnitude, "must be in [0, 10]")
        require(deviation >= 0, "augment.rand_deviation", deviation, "must be 0 or more")
        for name in ("mixup", "cutmix"):
            alpha = getattr(self, name)
            require(alpha == 0 or 0.1 <= alpha <= 2, f"augment.{name}", alpha, "0, or 0.1 to 2")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimConfig(OptimConfig):
    """AdamW with layer-wise decay of the learning rate; rates are per 256 videos of the batch."""

    base_lr: float = 1e-3
    """Peak learning rate of the head per 256 videos."""
    min_lr: float = 1e-6
    """Last learning rate of the head per 256 videos."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """AdamW's two momenta."""
    layer_decay: float = 0.75
    """Learning rate of a layer over that of the layer above it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        decay = self.layer_decay
        require(0 < decay <= 1, "optim.layer_decay", decay, "must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class FinetuneTrainConfig(LoopConfig):
    """The training loop. ``batch_size`` counts videos."""

    batch_size: int = 512
    """Global batch: videos per optimizer step over all ranks and accumulation."""
    epochs: int = 100
    """Passes over the list; ignored when ``steps`` is given."""
    eval_epochs: int = 1
    """Passes over the list between two quick evaluations on ``data.eval`` (one clip, middle crop);
    0 = none. After the last step comes one with all views."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is
    evaluated and stored as the model; 0 = none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eval_epochs >= 0, "train.eval_epochs", self.eval_epochs, "must be 0 or more")
        require(0 <= self.ema_decay < 1, "train.ema_decay", self.ema_decay, "must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A fine-tuning run. Resolved and saved as ``runs/<name>/config.yaml``."""

    name: str = "finetune"
    """Name of the run's folder."""
    output_dir: str = "runs"
    """Folder that holds the run's folder."""
    seed: int = 0
    """Seed of the head, the clips and their augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is cuda where there is one."""
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
        check_run_name(self.name, self.seed)
        self.check_world_size(1)
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
    def windows_per_step(self) -> int:
        """Decoded windows per optimizer step, over all ranks."""
        return self.train.batch_size

    @property
    def clips_per_step(self) -> int:
        """Clips per optimizer step, over all ranks."""
        return self.train.batch_size * self.data.repeats

    def identity(self) -> dict[str, Any]:
        """What no checkpoint may change."""
        return {
            "model.image_size": self.model.image_size,
            "model.num_frames": self.model.num_frames,
        }
