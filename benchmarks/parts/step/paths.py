"""The paths that are compared: one training step, run four ways on the same weights and clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parts.bench import ROOT
from parts.step.clips import NAME, moving_texture
from tats_fast import kernels
from tats_fast.config import ModelConfig, RunConfig
from tats_fast.data.clip import ClipDraw, multi_scale_crop
from tats_fast.data.video import DecodeError, decode_window
from tats_fast.engine.distributed import World
from tats_fast.engine.optim import LR_REFERENCE_BATCH
from tats_fast.masking import visible_tokens
from tats_fast.pretrain.step import Learner, StepPlan, train_step
from tats_fast.pretrain.trainer import make_learner

CLIPS_FOLDER = ROOT / "demo" / "clips" / "train"
DECODED_CLIPS = 32
"""Different clips decoded at most; a larger batch repeats them."""
FRAME_STRIDE = 4
CROP_SCALES = (1.0, 0.875, 0.75, 0.66)

RELATIVE_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""First step's losses against the baseline's. Policy and value loss are differences of numbers of
size 1 (advantages are in deviations, rewards in means) and start near 0, so theirs is relative to
at least 1."""
GRADIENT_TOLERANCE = {"fp32": 1e-2, "bf16": 1e-1}
"""The same for the gradient norms of autoencoder and sampler. The sampler's is divided by the
reward's deviation, at the first step a percent of its mean, which costs it two digits."""
RELATIVE_TO_ONE = ("loss_policy", "loss_value")


@dataclass(frozen=True)
class StepPath:
    """One way to run the step."""

    name: str
    kernels: str
    """Level of the hot ops, whatever the environment says."""
    attention: str
    """``model.attention``."""
    compiled: tuple[str, ...] = ()
    """Device types on which ``train.compile`` is on (torch.compile of every block)."""


PATHS = {
    path.name: path
    for path in (
        StepPath("reference", "reference", "eager"),
        StepPath("sdpa", "reference", "sdpa"),
        StepPath("compiled", "torch", "sdpa", ("cuda", "cpu")),
        StepPath("fast", "auto", "auto", ("cuda",)),
        StepPath("fast_eager", "auto", "auto"),
    )
}
"""``fast`` is what a run would use; ``fast_eager``, for comparison on a GPU, is it without
torch.compile."""


@dataclass
class Contender:
    """A path with its learner; ``step`` is the training step that a run would take."""

    path: StepPath
    learner: Learner
    clips: list[Tensor]
    taken: int = 0
    skipped: list[Tensor] = field(default_factory=list)

    def step(self) -> dict[str, Tensor]:
        """One training step; metrics stay on the device."""
        config = self.learner.config
        plan = StepPlan(
            step=self.taken,
            lr=config.optim.base_lr * config.train.batch_size / LR_REFERENCE_BATCH,
            visible=visible_tokens(config.masking.strategy, config.model, config.masking.ratio),
            warmup=False,
        )
        with kernels.use(self.path.kernels):
            metrics = train_step(self.learner, self.clips, plan)
        self.taken += 1
        self.skipped.append(metrics["skipped"])
        return metrics

    def levels(self) -> dict[str, str]:
        """Which implementation of each op runs."""
        device_type = self.learner.world.device.type
        with kernels.use(self.path.kernels):
            return {op: kernels.resolved_level(op, device_type) for op in kernels.ops()}

    def first_step(self) -> dict[str, float]:
        """Take the first step; its losses, and the norms of the gradients that it applied."""
        runner, sampler = self.learner.runner, self.learner.sampler
        watched = [("grad_norm_mae", runner.optimizer, runner.module)]
        if sampler is not None:
            optimizer = self.learner.sampler_optimizer
            watched.append(("grad_norm_sampler", optimizer, sampler))
            # On its own, because actor and biases dwarf it: an attention that returned zeros would
            # change the sampler's norm by less than rounding does.
            watched.append(("grad_norm_sampler_attention", optimizer, sampler.block.attention))
        norms: dict[str, Tensor] = {}
        handles = [
            optimizer.register_step_pre_hook(_norm_recorder(norms, name, module))
            for name, optimizer, module in watched
        ]
        try:
            metrics = self.step()
        finally:
            for handle in handles:
                handle.remove()
        losses = {name: value for name, value in metrics.items() if name.startswith("loss_")}
        return {name: float(value) for name, value in {**losses, **norms}.items()}


def _norm_recorder(norms: dict[str, Tensor], name: str, module: torch.nn.Module) -> Any:
    """A hook that notes the gradient norm of the matrices of ``module`` at its first call."""

    def record(*_: Any) -> None:
        if name not in norms:
            matrices = [p for p in module.parameters() if p.ndim > 1]
            gradients = [p.grad for p in matrices if p.grad is not None]
            norms[name] = torch.nn.utils.get_total_norm(gradients)

    return record


def make_contender(
    path: StepPath, config: RunConfig, device: torch.device, clips: Tensor
) -> Contender:
    """Seeded learner for ``path``: equal configurations give equal weights.

    Raises:
        ConfigError: an attention backend that this machine lacks.
    """
    config = replace(
        config,
        model=replace(config.model, attention=path.attention),
        train=replace(config.train, compile=device.type in path.compiled),
    )
    learner = make_learner(config, World(0, 1, device))
    return Contender(path, learner, list(clips.chunk(config.train.accumulation)))


def disagreements(
    values: dict[str, float], baseline: dict[str, float], precision: str
) -> list[str]:
    """What of a path's first step differs from the baseline's by more than the tolerance."""
    found = []
    for name, expected in baseline.items():
        tolerance = RELATIVE_TOLERANCE[precision]
        if name.startswith("grad_norm"):
            tolerance = GRADIENT_TOLERANCE[precision]
        scale = max(abs(expected), 1.0) if name in RELATIVE_TO_ONE else abs(expected)
        # "not <=" so that a NaN disagrees.
        if not abs(values[name] - expected) <= tolerance * scale:
            found.append(f"{name} {values[name]:.6g}, expected {expected:.6g}")
    return found


def load_clips(model: ModelConfig, batch: int, seed: int) -> tuple[Tensor, str]:
    """A batch of uint8 clips (B, T, S, S, 3), and one phrase that says what they are.

    Random windows and crops of the demo's videos, scaled to the model's size; generated moving
    textures where PyAV or the videos are missing.
    """
    videos = sorted(CLIPS_FOLDER.glob("*.mp4"))
    try:
        if not videos:
            raise FileNotFoundError(f"no videos in {CLIPS_FOLDER.relative_to(ROOT)}")
        distinct = [
            _decode(videos, index, model, seed) for index in range(min(batch, DECODED_CLIPS))
        ]
    except (ImportError, FileNotFoundError, DecodeError) as error:
        rng = np.random.default_rng(seed)
        frames, side = model.num_frames, model.image_size
        distinct = [moving_texture(frames, side, rng) for _ in range(min(batch, DECODED_CLIPS))]
        source = f"{len(distinct)} x {NAME} ({error})"
    else:
        folder = CLIPS_FOLDER.relative_to(ROOT)
        source = f"{len(distinct)} random crop(s) of real clips in {folder}"
    clips = torch.from_numpy(np.stack([distinct[i % len(distinct)] for i in range(batch)]))
    return clips, source


def _decode(videos: Sequence[Path], index: int, model: ModelConfig, seed: int) -> np.ndarray:
    draw = ClipDraw.of(seed, 0, index)
    return decode_window(
        str(videos[index % len(videos)]),
        model.num_frames,
        FRAME_STRIDE,
        model.image_size,
        draw.window,
        lambda width, height: multi_scale_crop(width, height, CROP_SCALES, draw),
    )
