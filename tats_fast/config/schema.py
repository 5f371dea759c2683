"""The configuration of a run: one frozen dataclass per component, each field documented.

A dataclass checks what it can see alone; ``RunConfig`` checks what concerns several of them. A
violated check raises ``ConfigError`` with one sentence that names the key, its value and a remedy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from tats_fast.config.checks import (
    nearest_multiple,
    require,
    require_fraction,
    require_positive,
)
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

Strategy = Literal["random", "tube", "frame", "motion", "adamae", "tats"]
LEARNED_STRATEGIES = ("adamae", "tats")
PROBES = ("linear", "linear_bn", "knn", "attentive")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The masked autoencoder. ``preset`` fills the sizes; any field given beside it wins."""

    preset: Preset = "vit_base"
    """Encoder and decoder sizes; vit_tiny is for machines without a GPU."""
    image_size: int = 224
    """Side of the square input clip, pixels; a multiple of ``patch_size``."""
    num_frames: int = 16
    """Frames per clip; a multiple of ``tubelet_size``."""
    tubelet_size: int = 2
    """Frames per token."""
    patch_size: int = 16
    """Side of a token's square, pixels."""
    width: int = 768
    """Encoder width C; divisible by ``heads``."""
    depth: int = 12
    """Encoder blocks."""
    heads: int = 12
    """Encoder attention heads."""
    decoder_width: int = 384
    """Decoder width; divisible by ``decoder_heads``."""
    decoder_depth: int = 4
    """Decoder blocks."""
    decoder_heads: int = 6
    """Decoder attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of every MLP over its block's width."""
    positions: Literal["flat", "space_time"] = "flat"
    """Fixed positions of the autoencoder: VideoMAE's over the flat token index (needed to exchange
    weights), or separate parts for time, row and column, from which small models learn sooner."""
    query_key_init: Literal["independent", "tied"] = "independent"
    """Initial query and key matrices of the autoencoder: drawn apart, or equal, so that attention
    starts out favouring tokens that are alike, which shortens a small model's first plateau."""
    attention: Attention = "auto"
    """Attention backend; ``auto`` takes the first of flash4, flash2, sdpa that this machine runs,
    ``flash`` the first FlashAttention (4 or 2)."""

    def __post_init__(self) -> None:
        require_positive(
            "model",
            self,
            *("image_size", "num_frames", "tubelet_size", "patch_size", "width", "depth", "heads"),
            *("decoder_width", "decoder_depth", "decoder_heads", "mlp_ratio"),
        )
        for name, unit in (("image_size", "patch_size"), ("num_frames", "tubelet_size")):
            value, step = getattr(self, name), getattr(self, unit)
            require(
                value % step == 0,
                f"model.{name}",
                value,
                f"must be a multiple of model.{unit}={step}, "
                f"for example {nearest_multiple(value, step)}",
            )
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            value, count = getattr(self, width), getattr(self, heads)
            require(
                value % count == 0,
                f"model.{width}",
                value,
                f"must be divisible by model.{heads}={count}, "
                f"for example {nearest_multiple(value, count)}",
            )

    @property
    def token_frames(self) -> int:
        """F: token rows in time."""
        return self.num_frames // self.tubelet_size

    @property
    def tokens_per_frame(self) -> int:
        """P: tokens in one token frame."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """N = F * P."""
        return self.token_frames * self.tokens_per_frame

    @property
    def patch_dim(self) -> int:
        """Numbers in one space-time patch: tubelet * patch * patch * 3."""
        return self.tubelet_size * self.patch_size**2 * 3


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which tokens stay visible."""

    strategy: Strategy = "tats"
    """``tats`` learns with PPO, ``adamae`` with AdaMAE's loss; the others do not learn."""
    ratio: float = 0.9
    """Share of tokens hidden (at the end of training, if a schedule runs), in [0, 1)."""
    start_ratio: float | None = None
    """Share hidden at the start; none = ``ratio`` throughout."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the share moves from ``start_ratio`` to ``ratio`` over training."""
    budget: Literal["fixed", "adaptive"] = "fixed"
    """The same number of visible tokens for every clip, or shared out within the batch, whose
    total stays what ``ratio`` says; the encoder then runs on packed sequences."""
    budget_by: Literal["uncertainty", "motion"] = "uncertainty"
    """What an adaptive share grows with: the number of tokens the policy spreads over, exp(H)
    (all clips alike while the sampler warms up), or the clip's frame difference."""
    budget_min: float = 0.5
    """Fewest visible tokens of a clip under an adaptive budget, over the average."""
    budget_max: float = 2.0
    """Most visible tokens of a clip under an adaptive budget, over the average."""
    decoder_keep_ratio: float = 1.0
    """Share of the masked tokens that the decoder rebuilds, drawn at random (VideoMAE V2's dual
    masking); the others are neither seen nor scored."""

    def __post_init__(self) -> None:
        keep = self.decoder_keep_ratio
        require(0 < keep <= 1, "masking.decoder_keep_ratio", keep, "must be above 0 and at most 1")
        require(
            0 < self.budget_min <= 1, "masking.budget_min", self.budget_min, "must be in (0, 1]"
        )
        require(self.budget_max >= 1, "masking.budget_max", self.budget_max, "must be at least 1")
        require(
            self.budget == "fixed" or self.strategy not in ("tube", "frame"),
            "masking.budget",
            self.budget,
            f"has no meaning for {self.strategy}, whose masks come in whole columns or frames",
        )
        learned = self.strategy in LEARNED_STRATEGIES
        require(
            self.budget == "fixed" or learned or self.budget_by == "motion",
            "masking.budget_by",
            self.budget_by,
            f"needs a learned strategy, not {self.strategy}; use masking.budget_by=motion",
        )
        for name in ("ratio", "start_ratio"):
            value = getattr(self, name)
            if value is not None:
                require(
                    0 <= value < 1,
                    f"masking.{name}",
                    value,
                    "must be at least 0 and below 1, for example 0.9",
                )
        require(
            self.schedule == "constant" or self.start_ratio is not None,
            "masking.schedule",
            self.schedule,
            "needs masking.start_ratio, or set masking.schedule=constant",
        )
        require(
            self.schedule != "constant" or self.start_ratio is None,
            "masking.start_ratio",
            self.start_ratio,
            "needs masking.schedule=linear or cosine to have an effect",
        )


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """The token sampler: one block, an actor branch and a value branch (TATS; AdaMAE for joint)."""

    attention: Literal["trajectory", "joint"] = "trajectory"
    """Trajectory attention, or ordinary space-time attention."""
    heads: int | None = None
    """Attention heads; none = the encoder's."""
    temporal_value: Literal["projected", "identity"] = "projected"
    """Value of the temporal stage: its projection, or the trajectory token itself (the variant
    that Motionformer's released default computes)."""
    uniform_floor: float = 0.05
    """alpha: the policy is (1 - alpha) softmax + alpha / N."""
    warmup_frac: float = 0.05
    """Share of training at whose start tokens are drawn at random and the sampler rests."""
    detach_tokens: bool = True
    """Keep the sampler's gradient out of the patch embedding."""

    def __post_init__(self) -> None:
        require_fraction("sampler", self, "uniform_floor", "warmup_frac")
        if self.heads is not None:
            require_positive("sampler", self, "heads")


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """How the sampler learns. docs/method.md derives each mode."""

    credit: Literal["token", "token_uniform", "set"] = "token"
    """What an action is: each masked token weighted on-policy, each masked token alike, or the
    whole drawn set."""
    reward: Literal["error", "error_motion"] = "error"
    """Reconstruction error, or the error times the root of the token's frame difference."""
    epochs: int = 2
    """K: sampler updates per batch; with 1 the ratio is 1 and clipping never acts."""
    clip_eps: float = 0.2
    """PPO's clipping range."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float = 1.0
    """tau: weight of the entropy bonus, in units of the advantage."""
    advantage_clip: float = 3.0
    """Advantages are clamped to +- this many running deviations."""
    reward_momentum: float = 0.99
    """Momentum of the running mean and deviation of the reward."""
    lr_scale: float = 1.0
    """Learning rate of the sampler over that of the autoencoder."""

    def __post_init__(self) -> None:
        require_positive("ppo", self, "epochs", "clip_eps", "advantage_clip", "lr_scale")
        require_fraction("ppo", self, "reward_momentum")
        require(self.reward_momentum < 1, "ppo.reward_momentum", self.reward_momentum, "below 1")
        for name in ("value_coef", "entropy_coef"):
            require(getattr(self, name) >= 0, f"ppo.{name}", getattr(self, name), "must be >= 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig(VideosConfig):
    """Where clips come from and how they are cut."""

    stride: int = 4
    """Frames between two sampled frames (DATA: 2 for SSv2, 4 elsewhere)."""
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Multi-scale crop: sides of the crop over the frame's short side."""
    repeats: int = 1
    """K: differently cropped and masked clips per decoded window. They count as clips: batch size,
    learning rate, steps and epochs stay what they are, and only one in K clips is decoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("data", self, "stride", "repeats")
        require(len(self.scales) > 0, "data.scales", list(self.scales), "needs at least one scale")
        for scale in self.scales:
            require(0 < scale <= 1, "data.scales", list(self.scales), "each must be in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """The training loop. ``batch_size`` counts clips."""

    init_from: str | None = None
    """Weights to start from: a run, checkpoint or exported folder, or a file that ``tats-fast
    import`` reads. None = fresh weights. The sampler always starts afresh."""
    eval_every: int = 0
    """Steps between two evaluations on ``data.eval``; 0 = only before the first and after the
    last step."""
    eval_clips: int = 32
    """Clips of one evaluation."""
    image_every: int = 500
    """Steps between two pictures of sampled masks in TensorBoard; 0 = none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("train", self, "eval_clips")
        for name in ("eval_every", "image_every"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must be >= 0")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Probes of the frozen encoder while it trains (``tats-fast probe``)."""

    probe_every: int = 0
    """Epochs (clips over videos) between two probes, and one after the last step; 0 = none."""
    probe_train: str | None = None
    """List with labels that probes are trained on; paths start as those of ``data``."""
    probe_eval: str | None = None
    """List with labels that probes are scored on."""
    probe_kinds: tuple[str, ...] = ("linear_bn", "knn")
    """Which: some of linear, linear_bn, knn, attentive."""

    def __post_init__(self) -> None:
        require(self.probe_every >= 0, "eval.probe_every", self.probe_every, "must be 0 or more")
        for name in ("probe_train", "probe_eval"):
            require(
                self.probe_every == 0 or getattr(self, name) is not None,
                f"eval.{name}",
                None,
                "probing needs a list with labels here, or set eval.probe_every=0",
            )
        kinds = list(self.probe_kinds)
        require(bool(kinds), "eval.probe_kinds", kinds, "needs at least one")
        for kind in kinds:
            require(kind in PROBES, "eval.probe_kinds", kinds, f"each one of {', '.join(PROBES)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. Resolved and saved as ``runs/<name>/config.yaml``."""

    name: str = "tats"
    """Name of the run's folder."""
    output_dir: str = "runs"
    """Folder that holds the run's folder."""
    seed: int = 0
    """Seed of weights, clips and masks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is cuda where there is one."""
    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        check_run_name(self.name, self.seed)
        if self.sampler.heads is not None:
            require(
                self.model.width % self.sampler.heads == 0,
                "sampler.heads",
                self.sampler.heads,
                f"must divide model.width={self.model.width}",
            )
        self.check_world_size(1)
        for name in ("ratio", "start_ratio"):
            ratio = getattr(self.masking, name)
            if ratio is not None:
                tokens = self.model.num_tokens
                require(
                    1 <= visible_count(tokens, ratio) < tokens,
                    f"masking.{name}",
                    ratio,
                    f"leaves {visible_count(tokens, ratio)} of {tokens} tokens visible; at least "
                    "one must stay visible and one hidden",
                )

    def check_world_size(self, world_size: int) -> None:
        """Raise ``ConfigError`` unless the batch splits evenly over ranks, micro-batches and the
        repeats of a decoded window."""
        check_batch(
            self.train.batch_size,
            world_size=world_size,
            train__accumulation=self.train.accumulation,
            data__repeats=self.data.repeats,
        )

    @property
    def windows_per_step(self) -> int:
        """Decoded windows per optimizer step, over all ranks."""
        return self.train.batch_size // self.data.repeats

    @property
    def clips_per_step(self) -> int:
        """Clips per optimizer step, over all ranks."""
        return self.train.batch_size

    def identity(self) -> dict[str, Any]:
        """What a weight or the reward's scale means by, so that no checkpoint may change it."""
        fixed = [("model", field) for field in vars(self.model) if field != "attention"]
        fixed += [("sampler", field) for field in ("attention", "heads", "temporal_value")]
        fixed += [("masking", "strategy"), ("ppo", "credit"), ("ppo", "reward")]
        return {f"{part}.{name}": getattr(getattr(self, part), name) for part, name in fixed}


def visible_count(num_tokens: int, ratio: float) -> int:
    """N_v = int(N * (1 - rho)), robust to the binary error of 1 - rho.

    1568 tokens at .90 leave 156 visible; 10 tokens at .9 leave 1, where ``int(10 * (1 - .9))`` in
    floating point would be 0.
    """
    return math.floor(num_tokens * (1 - ratio) + 1e-6)
