"""The paths that are compared: one training step, several ways, on the same weights and clips."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parts import ROOT
from parts.peak_memory import MIB, peak_mb, state_bytes
from parts.step.clips import NAME, moving_texture
from parts.step.peer import Peer, VideoMAE
from parts.step.peer_adamae import AdaMAE
from parts.step.stages import stages_ms
from tats_fast import kernels
from tats_fast.config import ModelConfig, RunConfig
from tats_fast.data.clip import ClipDraw, multi_scale_crop
from tats_fast.data.opening import DecodeError
from tats_fast.data.video import decode_window
from tats_fast.engine.distributed import World
from tats_fast.engine.optim import LR_REFERENCE_BATCH
from tats_fast.masking import visible_tokens
from tats_fast.pretrain.graph import EAGER_STEPS, GraphedStep, Step, make_step
from tats_fast.pretrain.learner import Learner, make_learner
from tats_fast.pretrain.memory import Sharing, count_parameters, step_memory
from tats_fast.pretrain.step import StepPlan

CLIPS_FOLDER = ROOT / "demo" / "clips" / "train"
DECODED_CLIPS = 32
"""Different clips decoded at most; a larger batch repeats them."""
FRAME_STRIDE = 4
CROP_SCALES = (1.0, 0.875, 0.75, 0.66)

TOLERANCES = {"fp32": (1e-4, 1e-2), "bf16": (2e-2, 1e-1)}
"""First step's losses against the baseline's, and the gradient norms of autoencoder and sampler.
Policy and value loss are differences of numbers of size 1 (advantages are in deviations, rewards in
means) and start near 0, so theirs is relative to at least 1. The sampler's norm is divided by the
reward's deviation, at the first step a percent of its mean, which costs it two digits."""
RELATIVE_TO_ONE = ("loss_policy", "loss_value")


@dataclass(frozen=True)
class StepPath:
    """One way to run the step."""

    kernels: str
    """Level of the hot ops, whatever the environment's TATS_KERNELS."""
    attention: str
    """``model.attention``."""
    compiled: tuple[str, ...] = ()
    """Device types on which ``train.compile`` is on (torch.compile of every block)."""
    strategy: str | None = None
    """``masking.strategy`` where it is not the configuration's."""
    peer: type[Peer] | None = None
    """Others' model and loss instead of ours; its kernels and attention are its own."""
    graph: bool = False
    """``train.cuda_graph``: steps after the first few are replayed as one CUDA graph."""
    learn_every: int = 1
    """``sampler.learn_every``."""

    @property
    def compared(self) -> bool:
        """Whether the first step must agree with the others': another mask gives other losses,
        fewer clips give the sampler other gradients."""
        return self.strategy is None and self.learn_every == 1


PATHS = {
    "reference": StepPath("reference", "eager"),
    "compiled": StepPath("torch", "sdpa", ("cuda", "cpu")),
    "fast": StepPath("auto", "auto", ("cuda",)),
    "videomae": StepPath("auto", "sdpa", strategy="random", peer=VideoMAE),
    "videomae_compiled": StepPath("auto", "sdpa", ("cuda", "cpu"), "random", peer=VideoMAE),
    "random": StepPath("auto", "auto", ("cuda",), strategy="random"),
    "fast_compiled": StepPath("auto", "auto", ("cuda", "cpu")),
    "random_compiled": StepPath("auto", "auto", ("cuda", "cpu"), strategy="random"),
    "random_graph": StepPath("auto", "auto", ("cuda",), strategy="random", graph=True),
    "every4": StepPath("auto", "auto", ("cuda",), learn_every=4),
    "adamae_code": StepPath("auto", "eager", strategy="adamae", peer=AdaMAE),
    "adamae": StepPath("auto", "auto", ("cuda",), strategy="adamae"),
    "sdpa": StepPath("reference", "sdpa"),
    "fast_eager": StepPath("auto", "auto"),
    "fast_graph": StepPath("auto", "auto", ("cuda",), graph=True),
    "fast_eager_graph": StepPath("auto", "auto", graph=True),
}
"""``fast`` is what a run would use, but for the CUDA graph of its small steps; ``fast_graph``, on a
GPU, is with one. ``fast_eager`` and ``fast_eager_graph``, for comparison there, are the two without
torch.compile; ``fast_compiled`` and ``random_compiled`` are with it on a CPU too, as runs with
``train.compile=true`` are. ``random`` is ``fast`` with a uniformly random mask and no sampler, so
that like can be compared with ``videomae``, Transformers' own model under such a mask;
``random_graph`` is that as a graph. ``every4`` is ``fast`` with a quarter of the clips teaching the
sampler."""


@dataclass
class Contender:
    """A path with its learner."""

    path: StepPath
    learner: Learner
    clips: list[Tensor]
    take: Step
    """``pretrain_step`` of the learner."""
    taken: int = 0
    skipped: list[Tensor] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    """The first step's losses, and the norms of the gradients that it applied."""

    @property
    def config(self) -> RunConfig:
        """The path's own configuration."""
        return self.learner.config

    @property
    def compared(self) -> bool:
        """``StepPath.compared``."""
        return self.path.compared

    @property
    def bf16(self) -> bool:
        """Whether it computes under bf16 autocast."""
        return self.learner.bf16

    def step(self) -> dict[str, Tensor]:
        """The training step that a run would take; metrics stay on the device."""
        config = self.learner.config
        plan = StepPlan(
            step=self.taken,
            lr=config.optim.base_lr * config.train.batch_size / LR_REFERENCE_BATCH,
            visible=visible_tokens(config.masking.strategy, config.model, config.masking.ratio),
            warmup=False,
        )
        with kernels.use(self.path.kernels):
            metrics = self.take(self.clips, plan)
        self.taken += 1
        self.skipped.append(metrics["skipped"])
        return metrics

    def settings(self) -> dict[str, Any]:
        """What distinguishes the path here, with the implementation of each op that runs."""
        device_type = self.learner.world.device.type
        with kernels.use(self.path.kernels):
            levels = {op: kernels.resolved_level(op, device_type) for op in kernels.ops()}
        return {
            "attention": self.learner.mae.backend,
            "kernels": levels,
            "compile": self.config.train.compile,
            "cuda_graph": self.path.graph,
            "masking": self.config.masking.strategy,
        }

    def stages(self) -> dict[str, float]:
        """``stages_ms`` of one step."""
        return stages_ms(self.step, self.learner, self.learner.world.device)

    def peak_memory_mb(self) -> float | None:
        """Of one step in MiB, its own state included; with a graph, the memory that it keeps."""
        learner = self.learner
        modules = filter(None, (learner.mae, learner.sampler))
        optimizers = filter(None, (learner.runner.optimizer, learner.sampler_optimizer))
        if isinstance(self.take, GraphedStep):
            return (state_bytes(modules, optimizers) + self.take.pool_bytes) / MIB
        return peak_mb(self.step, modules, optimizers, learner.world.device)

    def planned_memory_mb(self) -> float | None:
        """What ``tats-fast plan`` says of that peak, MiB; None of paths that nobody trains by."""
        if self.path.kernels == "reference" or isinstance(self.take, GraphedStep):
            return None
        with kernels.use(self.path.kernels):
            fused = kernels.resolved_level("masked_mse", self.learner.world.device.type) == "triton"
        how = {"bf16": self.bf16, "compiled": self.config.train.compile, "fused": fused}
        counts = count_parameters(self.config)
        return step_memory(self.config, counts, Sharing(), **how).peak / MIB

    def take_first_step(self) -> None:
        """Fill in ``first``; with a graph, take the steps that it takes to record it.

        Raises:
            RuntimeError: it could not be recorded.
        """
        runner, sampler = self.learner.runner, self.learner.sampler
        modules = [("grad_norm_mae", runner.optimizer, runner.module)]
        if sampler is not None:
            optimizer = self.learner.sampler_optimizer
            modules.append(("grad_norm_sampler", optimizer, sampler))
            # On its own, because actor and biases dwarf it: an attention that returned zeros would
            # change the sampler's norm by less than rounding does.
            modules.append(("grad_norm_sampler_attention", optimizer, sampler.block.attention))
        norms: dict[str, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for name, optimizer, module in modules:
                record = _norm_recorder(norms, name, module)
                hooks.enter_context(optimizer.register_step_pre_hook(record))
            metrics = self.step()
        losses = {name: value for name, value in metrics.items() if name.startswith("loss_")}
        self.first = {name: float(value) for name, value in {**losses, **norms}.items()}
        if isinstance(self.take, GraphedStep):
            for _ in range(EAGER_STEPS):
                self.step()
            if not self.take.recorded:
                raise RuntimeError(f"no CUDA graph: {self.take.failure}")


def _norm_recorder(norms: dict[str, Tensor], name: str, module: torch.nn.Module) -> Any:
    """A hook that notes the gradient norm of the matrices of ``module`` at its first call."""

    def record(*_: Any) -> None:
        if name not in norms:
            gradients = [p.grad for p in module.parameters() if p.ndim > 1 and p.grad is not None]
            norms[name] = torch.nn.utils.get_total_norm(gradients)

    return record


def make_contender(
    path: StepPath, config: RunConfig, device: torch.device, clips: Tensor
) -> Contender | Peer:
    """Seeded learner for ``path``: equal configurations give equal weights.

    Raises:
        ConfigError: an attention backend that this machine lacks, a CUDA graph without a GPU, a
            batch that does not split.
        ImportError: a peer that is not installed.
    """
    strategy = path.strategy or config.masking.strategy
    micro_batches = list(clips.chunk(config.train.accumulation))
    # As its authors have it, and as a run with that strategy has it.
    attention = "joint" if path.strategy == "adamae" else config.sampler.attention
    config = replace(
        config,
        model=replace(config.model, attention=path.attention),
        masking=replace(config.masking, strategy=strategy),
        sampler=replace(config.sampler, attention=attention, learn_every=path.learn_every),
        train=replace(config.train, compile=device.type in path.compiled, cuda_graph=path.graph),
    )
    if path.peer is not None:
        return path.peer(config, device, micro_batches)
    learner = make_learner(config, World(0, 1, device))
    return Contender(path, learner, micro_batches, make_step(learner))


def disagreements(first: dict[str, float], baseline: dict[str, float], precision: str) -> list[str]:
    """What of a path's first step differs from the baseline's by more than the tolerance."""
    losses, norms = TOLERANCES[precision]
    differences = []
    for name, expected in baseline.items():
        tolerance = norms if name.startswith("grad_norm") else losses
        scale = max(abs(expected), 1.0) if name in RELATIVE_TO_ONE else abs(expected)
        value = first[name]
        # "not <=" so that a NaN disagrees.
        if not abs(value - expected) <= tolerance * scale:
            differences.append(f"{name} {value:.6g}, expected {expected:.6g}")
    return differences


def load_clips(model: ModelConfig, batch: int, seed: int) -> tuple[Tensor, str]:
    """A batch of uint8 clips (B, T, S, S, 3), and one phrase that says what they are.

    Random windows and crops of the demo's videos, scaled to the model's size; generated moving
    textures where PyAV or the videos are missing.
    """
    folder, count = CLIPS_FOLDER.relative_to(ROOT), min(batch, DECODED_CLIPS)
    videos = sorted(CLIPS_FOLDER.glob("*.mp4"))
    try:
        if not videos:
            raise FileNotFoundError(f"no videos in {folder}")
        distinct = [_decode(videos, index, model, seed) for index in range(count)]
        source = f"{count} random crop(s) of real clips in {folder}"
    except (ImportError, FileNotFoundError, DecodeError) as error:
        rng = np.random.default_rng(seed)
        distinct = [moving_texture(model.num_frames, model.image_size, rng) for _ in range(count)]
        source = f"{count} x {NAME} ({error})"
    return torch.from_numpy(np.stack([distinct[i % count] for i in range(batch)])), source


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
