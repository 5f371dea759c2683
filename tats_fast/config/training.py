"""Sections that every kind of training has: where videos come from, optimizer, loop, processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tats_fast.config.checks import nearest_multiple, require, require_fraction, require_positive

Preset = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]
Attention = Literal["auto", "flash", "flash4", "flash2", "sdpa", "eager"]


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """Which videos a run reads, and how they are decoded."""

    train: str | None = None
    """List file (path[, label] per line) or folder of videos. Required to train."""
    eval: str | None = None
    """The same for held-out clips; none = no evaluation while training."""
    root: str | None = None
    """Folder that relative paths of a list start from; none = the list file's own folder."""
    flip: bool = False
    """Mirror half of the clips; never where left and right are classes (SSv2)."""
    backend: Literal["auto", "dali", "pyav"] = "auto"
    """``dali`` decodes on the device what DALI can and the rest with PyAV, ``pyav`` all on the CPU;
    ``auto`` is dali on a GPU where it is installed."""
    workers: int = 2
    """Decoding processes per rank; 0 decodes in the training process."""
    timeout_s: float = 60.0
    """Seconds after which a file is given up as undecodable; a process that does not even notice is
    replaced after twice as long."""
    quarantine: str | None = None
    """File of ``path<TAB>reason`` lines (``tats-fast verify``, or a run's bad_files.txt) whose
    videos are left out of ``train`` and ``eval``."""
    max_bad_fraction: float = 0.25
    """Training stops once more than this share of the listed videos could not be decoded."""

    def __post_init__(self) -> None:
        require_positive("data", self, "timeout_s")
        require(self.workers >= 0, "data.workers", self.workers, "must be 0 or more")
        require_fraction("data", self, "max_bad_fraction")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule. The three rates are for a global batch of 256 and scale with it."""

    base_lr: float = 1.5e-4
    """Peak learning rate per 256 clips."""
    min_lr: float = 1e-5
    """Last learning rate per 256 clips."""
    warmup_lr: float = 1e-6
    """First learning rate per 256 clips."""
    warmup_frac: float = 0.05
    """Share of training spent on the linear warm-up (VideoMAE: 40 of 800 epochs)."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on biases, norms, positions and the mask token."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """AdamW's two momenta."""
    grad_clip: float = 0.0
    """Largest global gradient norm, each for autoencoder and sampler; 0 = off."""

    def __post_init__(self) -> None:
        require_positive("optim", self, "base_lr")
        require_fraction("optim", self, "warmup_frac")
        for name in ("min_lr", "warmup_lr", "weight_decay", "grad_clip"):
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "must be >= 0")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "optim.betas",
            list(self.betas),
            "must be two numbers in [0, 1), for example [0.9, 0.95]",
        )


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What a training loop is told, whatever it trains."""

    batch_size: int = 256
    """Global batch per optimizer step, over all ranks and accumulation."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    epochs: int = 800
    """Passes over the list; ignored when ``steps`` is given."""
    steps: int | None = None
    """Optimizer steps; none = from ``epochs``."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` is bf16 autocast on CUDA and fp32 on the CPU. Parameters stay fp32."""
    log_every: int = 10
    """Steps between two logged lines (one host sync each)."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the last step always writes one."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept."""
    compile: bool = False
    """Run every transformer block through torch.compile; the first steps take a minute longer."""
    recompute: bool = False
    """Keep only the blocks' inputs and run their forward again in the backward pass: less memory
    for about a third more compute."""
    max_skipped: int = 10
    """Steps in a row whose loss may be non-finite before the run stops."""
    resume: str = "auto"
    """``auto`` continues the run's newest checkpoint, ``none`` starts afresh (in an empty run
    folder), anything else is a checkpoint folder to continue from."""

    def __post_init__(self) -> None:
        require_positive(
            "train",
            self,
            *("batch_size", "accumulation", "epochs", "log_every", "checkpoint_every"),
            *("keep_checkpoints", "max_skipped"),
        )
        if self.steps is not None:
            require_positive("train", self, "steps")


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Several processes."""

    engine: Literal["auto", "ddp", "deepspeed"] = "auto"
    """``auto`` is DeepSpeed under the ``deepspeed`` launcher and DDP under any other."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage 1 or 2; 0 means plain DDP (bf16 under DeepSpeed's stage 0 is wrong)."""
    deepspeed_config: str | None = None
    """JSON file of further DeepSpeed settings (buckets, offload); keys the trainer owns are
    refused."""

    def __post_init__(self) -> None:
        require(
            self.zero_stage in (0, 1, 2),
            "distributed.zero_stage",
            self.zero_stage,
            "must be 0, 1 or 2",
        )
        require(
            not (self.engine == "deepspeed" and self.zero_stage == 0),
            "distributed.zero_stage",
            0,
            "use distributed.engine=ddp for unsharded training",
        )


def check_run_name(name: str, seed: int) -> None:
    """Require a name that makes one folder, and a seed that generators take."""
    require(
        bool(name) and name not in (".", "..") and "/" not in name,
        "name",
        repr(name),
        "must be a plain folder name, for example tats_ssv2",
    )
    require(seed >= 0, "seed", seed, "must be 0 or more")


def check_batch(batch: int, **factors: int) -> None:
    """Require a batch that splits evenly; ``factors`` are what it is split by, by name ("__" for
    the dot of a key)."""
    names = [(name.replace("__", "."), count) for name, count in factors.items() if count > 1]
    unit = 1
    for _, count in names:
        unit *= count
    words = [f"{name}={n}" if "." in name else f"{name.replace('_', ' ')} {n}" for name, n in names]
    require(
        batch % unit == 0,
        "train.batch_size",
        batch,
        f"must be divisible by {' x '.join(words)}, for example {nearest_multiple(batch, unit)}",
    )
