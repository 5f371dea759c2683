"""The configuration of a run: one frozen dataclass per component, each field documented.

A dataclass checks what it can see alone; ``RunConfig`` checks what concerns several of them. A
violated check raises ``ConfigError`` with one sentence that names the key, its value and a remedy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from tats_fast.config.checks import require
from tats_fast.config.generated import GeneratedConfig
from tats_fast.config.model import ModelConfig
from tats_fast.config.options import Options, option
from tats_fast.config.sampling import settle_sampling
from tats_fast.config.teacher import TeacherConfig
from tats_fast.config.training import (
    DistributedConfig,
    LoopConfig,
    OptimConfig,
    TrainingConfig,
    VideosConfig,
    check_batch,
)

Strategy = Literal["random", "tube", "frame", "motion", "motion_bins", "everest", "adamae", "tats"]
LEARNED_STRATEGIES = ("adamae", "tats")
Reward = Literal["error", "error_motion", "change_error", "sparse_change"]
CHANGE_REWARDS = ("change_error", "sparse_change")
"""Values of ``ppo.reward`` made from the error of the change between a token's frames."""
PROBES = ("linear", "linear_bn", "knn", "attentive")


@dataclass(frozen=True, kw_only=True)
class MaskingConfig(Options):
    """Which tokens stay visible."""

    section: ClassVar[str] = "masking."

    strategy: Strategy = "tats"
    """``tats`` learns with PPO, ``adamae`` with AdaMAE's loss; the others do not learn."""
    ratio: float = option(0.9, at_least=0, below=1)
    """Share of tokens hidden (at the end of training, if a schedule runs), in [0, 1)."""
    start_ratio: float | None = option(None, at_least=0, below=1)
    """Share hidden at the start; none = ``ratio`` throughout."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the share moves from ``start_ratio`` to ``ratio`` over training."""
    budget: Literal["fixed", "adaptive"] = "fixed"
    """The same number of visible tokens for every clip, or shared out within the batch, whose
    total stays what ``ratio`` says; the encoder then runs on packed sequences."""
    budget_by: Literal["uncertainty", "motion"] = "uncertainty"
    """What an adaptive share grows with: the number of tokens the policy spreads over, exp(H)
    (all clips alike while the sampler warms up), or the clip's frame difference."""
    budget_min: float = option(0.5, above=0, at_most=1)
    """Fewest visible tokens of a clip under an adaptive budget, over the average."""
    budget_max: float = option(2.0, at_least=1)
    """Most visible tokens of a clip under an adaptive budget, over the average."""
    draws_per_clip: int = option(1, at_least=1)
    """M: masks of every clip in a step, which go through encoder and decoder as one batch and share
    the clip's decoding, patches and the sampler's passes. ``train.batch_size`` counts clips."""
    decoder_keep_ratio: float = option(1.0, above=0, at_most=1)
    """Share of the masked tokens that the decoder rebuilds, drawn at random (VideoMAE V2's dual
    masking); the others are neither seen nor scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.budget == "fixed" or self.strategy not in ("tube", "frame"),
            "masking.budget",
            self.budget,
            f"has no meaning for {self.strategy}, whose masks come in whole columns or frames",
        )
        require(
            self.budget == "fixed" or self.draws_per_clip == 1,
            "masking.draws_per_clip",
            self.draws_per_clip,
            "needs the same number of visible tokens in every draw; use masking.budget=fixed",
        )
        learned = self.strategy in LEARNED_STRATEGIES
        require(
            self.budget == "fixed" or learned or self.budget_by == "motion",
            "masking.budget_by",
            self.budget_by,
            f"needs a learned strategy, not {self.strategy}; use masking.budget_by=motion",
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
class SamplerConfig(Options):
    """The token sampler: one block, an actor branch and a value branch (TATS; AdaMAE for joint)."""

    section: ClassVar[str] = "sampler."

    attention: Literal["trajectory", "joint"] | None = None
    """Trajectory attention, or ordinary space-time attention; none = ``joint``, which AdaMAE has,
    with ``masking.strategy=adamae``, else ``trajectory``."""
    heads: int | None = option(None, at_least=1)
    """Attention heads; none = the encoder's."""
    temporal_value: Literal["projected", "identity"] = "projected"
    """Value of the temporal stage: its projection, or the trajectory token itself (the variant
    that Motionformer's released default computes)."""
    uniform_floor: float = option(0.05, at_least=0, at_most=1)
    """alpha: the policy is (1 - alpha) softmax + alpha / N."""
    warmup_frac: float = option(0.05, at_least=0, at_most=1)
    """Share of training at whose start tokens are drawn at random and the sampler rests."""
    learn_every: int = option(1, at_least=1)
    """n: every n-th clip of a batch teaches the sampler; for the others it draws without a backward
    pass, which saves time and memory."""
    detach_tokens: bool = True
    """Keep the sampler's gradient out of the patch embedding."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(Options):
    """How the sampler learns. docs/method.md derives each mode."""

    section: ClassVar[str] = "ppo."

    credit: Literal["token", "token_uniform", "set"] = "token"
    """What an action is: each masked token weighted on-policy, each masked token alike, or the
    whole drawn set."""
    reward: Reward | None = None
    """Reconstruction error, as in the paper; the error times the root of the token's frame
    difference; the error of the change that the model predicts between a token's frames, in units
    of the pixels; or the same with clips counting less in which much changes, a camera's movement
    for example. None = ``sparse_change``, but ``error`` for tokens of one frame, for ``credit=set``
    and beside a teacher. docs/evidence.md has what each is worth."""
    epochs: int = option(1, at_least=1)
    """K: sampler updates per batch; with 1 the ratio is 1 and clipping never acts. What
    docs/evidence.md has was measured with 1; each further one costs a pass of the sampler, forward
    and backward."""
    clip_eps: float = option(0.2, above=0)
    """PPO's clipping range."""
    value_coef: float = option(0.5, at_least=0)
    """Weight of the value loss."""
    entropy_coef: float = option(0.5, at_least=0)
    """tau: weight of the entropy bonus, in units of the advantage. Larger: a flatter policy."""
    advantage_clip: float = option(3.0, above=0)
    """Advantages are clamped to +- this many running deviations."""
    reward_momentum: float = option(0.99, at_least=0, below=1)
    """Momentum of the running mean and deviation of the reward."""
    lr_scale: float = option(1.0, above=0)
    """Learning rate of the sampler over that of the autoencoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward == "sparse_change":
            remedy = "rewards whole clips, but ppo.reward=sparse_change compares the tokens of one"
            remedy += "; set ppo.reward=error"
            require(self.credit != "set", "ppo.credit", self.credit, remedy)


@dataclass(frozen=True, kw_only=True)
class DataConfig(VideosConfig):
    """Where clips come from and how they are cut."""

    stride: int | None = option(None, at_least=1)
    """Frames between two sampled frames (DATA: 2 for SSv2, 4 elsewhere); none = 4, or ``fps``."""
    fps: float | None = option(None, above=0)
    """Sampled frames per second, by the files' timestamps and whatever their own rates; in the
    place of ``stride``, which must then be null."""
    scales: tuple[float, ...] = option((1.0, 0.875, 0.75, 0.66), above=0, at_most=1)
    """Multi-scale crop: sides of the crop over the frame's short side."""
    repeats: int = option(1, at_least=1)
    """K: differently cropped and masked clips per decoded window. They count as clips: batch size,
    learning rate, steps and epochs stay what they are, and only one in K clips is decoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_sampling(self)
        require(len(self.scales) > 0, "data.scales", list(self.scales), "needs at least one scale")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """The training loop. ``batch_size`` counts clips."""

    cuda_graph: bool | None = None
    """Replay the whole step as one CUDA graph, which spares the host its launches: one GPU, one
    process, a constant mask ratio. None = where the launches are what a step waits for, up to about
    16 clips of ViT-B on an H100 and more of smaller models."""
    init_from: str | None = None
    """Weights to start from: a run, checkpoint or exported folder, or a file that ``tats-fast
    import`` reads. None = fresh weights. The encoder must fit; decoder and sampler are taken where
    they do. Clips may have other ``num_frames`` and ``image_size``."""
    ema_decay: float = option(0.0, at_least=0, below=1)
    """Decay per step of an exponential moving average of the autoencoder's weights, kept beside
    them, measured at evaluations and probes too, and read by ``export --ema``; 0 = none. 0.9999
    averages over about 10,000 steps."""
    eval_every: int = option(0, at_least=0)
    """Steps between two evaluations on ``data.eval``; 0 = only before the first and after the
    last step."""
    eval_clips: int = option(32, at_least=1)
    """Clips of one evaluation."""
    image_every: int = option(500, at_least=0)
    """Steps between two pictures of sampled masks in TensorBoard; 0 = none."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Options):
    """Probes of the frozen encoder while it trains (``tats-fast probe``)."""

    section: ClassVar[str] = "eval."

    probe_every: int = option(0, at_least=0)
    """Epochs (clips over videos) between two probes, and one after the last step; 0 = none."""
    probe_train: str | None = None
    """List with labels that probes are trained on; paths start as those of ``data``."""
    probe_eval: str | None = None
    """List with labels that probes are scored on."""
    probe_kinds: tuple[str, ...] = option(("linear_bn", "knn"), choices=PROBES)
    """Which: some of linear, linear_bn, knn, attentive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("probe_train", "probe_eval"):
            require(
                self.probe_every == 0 or getattr(self, name) is not None,
                f"eval.{name}",
                None,
                "probing needs a list with labels here, or set eval.probe_every=0",
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """A whole run. Resolved and saved as ``runs/<name>/config.yaml``."""

    command: ClassVar[str] = "pretrain"
    name: str = "tats"
    """Name of the run's folder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ppo.reward is None:
            plain = self.teacher.init_from is not None or self.ppo.credit == "set"
            reward = "error" if plain or self.model.tubelet_size == 1 else "sparse_change"
            object.__setattr__(self, "ppo", replace(self.ppo, reward=reward))
        if self.sampler.attention is None:
            attention = "joint" if self.masking.strategy == "adamae" else "trajectory"
            object.__setattr__(self, "sampler", replace(self.sampler, attention=attention))
        require(
            self.teacher.pixels > 0 or self.ppo.reward not in CHANGE_REWARDS,
            "ppo.reward",
            self.ppo.reward,
            "is an error of predicted pixels, which nothing trains with teacher.pixels=0; set "
            "ppo.reward=error",
        )
        if self.sampler.heads is not None:
            require(
                self.model.width % self.sampler.heads == 0,
                "sampler.heads",
                self.sampler.heads,
                f"must divide model.width={self.model.width}",
            )
        if self.model.tubelet_size == 1:
            self._check_nothing_asks_for_motion()
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
        require(
            self.masking.strategy != "tube" or self.model.tokens_per_frame > 1,
            "masking.strategy",
            "tube",
            "shows a place in every frame, and clips of one place would hide nothing",
        )
        require(
            self.listed_per_step > 0 or self.train.steps is not None,
            "train.steps",
            None,
            f"generated.share={self.generated.share:g} leaves no list whose passes could be "
            "counted; give the number of steps",
        )

    def _check_nothing_asks_for_motion(self) -> None:
        """Of tokens of one frame: none moves more than another."""
        masking, reward = self.masking, self.ppo.reward
        asked = {
            ("masking.strategy", masking.strategy): masking.strategy in ("motion", "motion_bins"),
            ("masking.budget_by", masking.budget_by): masking.budget == "adaptive"
            and masking.budget_by == "motion",
            ("ppo.reward", reward): masking.strategy == "tats" and reward != "error",
        }
        for (key, value), asks in asked.items():
            remedy = "looks for motion inside a token, and with model.tubelet_size=1 there is none"
            remedy += "; set ppo.reward=error" if key == "ppo.reward" else ""
            require(not asks, key, value, remedy)

    def check_world_size(self, world_size: int) -> None:
        """Raise ``ConfigError`` unless the batch splits evenly over ranks, micro-batches, what
        teaches the sampler and the repeats of a decoded window, and its generated part over the
        first two."""
        batch, repeats = self.train.batch_size, self.data.repeats
        parts = {"world_size": world_size, "train__accumulation": self.train.accumulation}
        if self.masking.strategy in LEARNED_STRATEGIES:
            check_batch(batch, **parts, sampler__learn_every=self.sampler.learn_every)
        if self.generated_per_step == 0:
            return check_batch(batch, **parts, data__repeats=repeats)
        check_batch(batch, **parts)
        micro_batches = world_size * self.train.accumulation
        listed, micro = self.listed_per_step / micro_batches, batch // micro_batches
        example = 1 - min(round(listed / repeats) * repeats, micro // repeats * repeats) / micro
        require(
            listed % repeats == 0,
            "generated.share",
            self.generated.share,
            f"leaves {listed:g} of the {micro} clips of a micro-batch for files; must be a "
            f"multiple of data.repeats={repeats}, for example generated.share={example:.4g}",
        )

    @property
    def generated_per_step(self) -> int:
        """Generated clips per optimizer step, over all ranks."""
        return round(self.generated.share * self.train.batch_size)

    @property
    def listed_per_step(self) -> int:
        return self.train.batch_size - self.generated_per_step

    @property
    def windows_per_step(self) -> int:
        return self.listed_per_step // self.data.repeats

    @property
    def clips_per_step(self) -> int:
        return self.train.batch_size

    def identity(self) -> dict[str, Any]:
        # What gives a weight or the reward's scale its meaning. The strategy comes first: with
        # another one the rest differs in what is read at all.
        strategy = self.masking.strategy
        fixed = [("masking", "strategy"), ("teacher", "init_from")]
        fixed += [("model", field) for field in vars(self.model) if field != "attention"]
        fixed += [("sampler", field) for field in ("attention", "heads", "temporal_value")]
        fixed += [("ppo", "credit"), ("ppo", "reward")]
        unread = {"sampler": strategy not in LEARNED_STRATEGIES, "ppo": strategy != "tats"}
        return {
            f"{part}.{name}": None if unread.get(part) else getattr(getattr(self, part), name)
            for part, name in fixed
        }


def visible_count(num_tokens: int, ratio: float) -> int:
    """N_v = int(N * (1 - rho)), robust to the binary error of 1 - rho.

    1568 tokens at .90 leave 156 visible; 10 tokens at .9 leave 1, where ``int(10 * (1 - .9))`` in
    floating point would be 0.
    """
    return math.floor(num_tokens * (1 - ratio) + 1e-6)
