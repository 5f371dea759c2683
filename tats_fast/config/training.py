"""What every kind of training has: the run, its videos, optimizer, loop and processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tats_fast.config.checks import nearest_multiple, require
from tats_fast.config.options import Options, option

Preset = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge", "vit_giant"]
Attention = Literal["auto", "flash", "flash4", "flash2", "sdpa", "eager"]


@dataclass(frozen=True, kw_only=True)
class WeightedList(Options):
    """One of several lists to train on."""

    section: ClassVar[str] = "data.train: "

    list: str
    """As ``data.train`` where it is a text: a list file, folder or shards."""
    weight: float = option(1.0, above=0)
    """Its share of the clips is its weight over the sum of all lists' weights."""


@dataclass(frozen=True, kw_only=True)
class VideosConfig(Options):
    """Which videos a run reads, and how they are decoded."""

    section: ClassVar[str] = "data."

    train: str | tuple[WeightedList, ...] | None = None
    """List file (path[, label] per line), folder of videos, or shards (``shards/{000..123}.tar``).
    Required to train. Several are ``[{list: A, weight: 2}, {list: B, weight: 1}]``: of each pass
    two thirds of the clips are A's."""
    eval: str | None = None
    """The same for held-out clips; none = no evaluation while training."""
    root: str | None = None
    """Folder that relative paths of a list start from; none = the list file's own folder."""
    flip: bool = False
    """Mirror half of the clips; never where left and right are classes (SSv2)."""
    backend: Literal["auto", "dali", "pyav"] = "auto"
    """``dali`` decodes on the device what DALI can and the rest with PyAV, ``pyav`` all on the CPU;
    ``auto`` is dali on a GPU where it is installed."""
    workers: int = option(2, at_least=0)
    """Decoding processes per rank; 0 decodes in the training process."""
    timeout_s: float = option(60.0, above=0)
    """Seconds after which a file is given up as undecodable; a process that does not even notice is
    replaced after twice as long."""
    quarantine: str | None = None
    """File of ``path<TAB>reason`` lines (``tats-fast verify``, or a run's bad_files.txt) whose
    videos are left out of ``train`` and ``eval``."""
    max_bad_fraction: float = option(0.25, at_least=0, at_most=1)
    """Training stops once more than this share of the listed videos could not be decoded when they
    were last tried."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.train != (), "data.train", "[]", "needs at least one list")

    @property
    def train_lists(self) -> tuple[WeightedList, ...]:
        """``train`` in its longer form."""
        if self.train is None or isinstance(self.train, tuple):
            return self.train or ()
        return (WeightedList(list=self.train),)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Options):
    """AdamW and its schedule. The three rates are for a global batch of 256 and scale with it."""

    section: ClassVar[str] = "optim."

    base_lr: float = option(1.5e-4, above=0)
    """Peak learning rate per 256 clips."""
    min_lr: float = option(1e-5, at_least=0)
    """Last learning rate per 256 clips."""
    warmup_lr: float = option(1e-6, at_least=0)
    """First learning rate per 256 clips."""
    warmup_frac: float = option(0.05, at_least=0, at_most=1)
    """Share of training spent on the linear warm-up (VideoMAE: 40 of 800 epochs)."""
    weight_decay: float = option(0.05, at_least=0)
    """Decoupled weight decay; none on biases, norms, positions and the mask token."""
    betas: tuple[float, ...] = option((0.9, 0.95), at_least=0, below=1)
    """AdamW's two momenta."""
    grad_clip: float = option(0.0, at_least=0)
    """Largest global gradient norm, each for autoencoder and sampler; 0 = off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        betas = list(self.betas)
        require(len(betas) == 2, "optim.betas", betas, "must be two numbers, such as [0.9, 0.95]")


LOGGERS = ("tensorboard", "wandb", "mlflow")


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Options):
    """What a training loop is told, whatever it trains."""

    section: ClassVar[str] = "train."

    batch_size: int = option(256, at_least=1)
    """Global batch per optimizer step, over all ranks and accumulation."""
    accumulation: int = option(1, at_least=1)
    """Micro-batches per optimizer step."""
    epochs: int = option(800, at_least=1)
    """Passes over the list; ignored when ``steps`` is given."""
    steps: int | None = option(None, at_least=1)
    """Optimizer steps; none = from ``epochs``."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` is bf16 autocast on CUDA and on processors with instructions for it (AVX-512 BF16,
    AMX), and fp32 on others. Parameters stay fp32."""
    log_every: int = option(10, at_least=1)
    """Steps between two logged lines (one host sync each)."""
    checkpoint_every: int = option(500, at_least=1)
    """Steps between two checkpoints; the last step always writes one."""
    loggers: tuple[str, ...] = option(("tensorboard",), choices=LOGGERS)
    """Where numbers can be watched besides ``metrics.jsonl``: some of tensorboard, wandb (Weights &
    Biases) and mlflow."""
    keep_checkpoints: int = option(3, at_least=1)
    """Newest checkpoints kept, and besides them the one that ``resume`` names."""
    keep_best: bool = False
    """Save at every evaluation as well, and keep the best of these checkpoints beside the newest:
    lowest ``loss_recon_random`` in pretraining, highest ``top1`` in fine-tuning."""
    compile: bool | None = None
    """Run every transformer block, and what lies between them, through torch.compile: on a GPU a
    fifth faster after a first step of about a minute. None = on a GPU only."""
    recompute: bool = False
    """Keep only the blocks' inputs and run their forward again in the backward pass: less memory
    for about a third more compute."""
    max_skipped: int = option(10, at_least=1)
    """Steps in a row whose loss or gradient may be non-finite before the run stops."""
    resume: str = "auto"
    """``auto`` continues the run's newest good checkpoint, ``none`` starts afresh (in an empty run
    folder), anything else is a checkpoint folder to go back to; later ones move to
    ``superseded/``."""

    def compiles(self, device_type: str) -> bool:
        """Whether ``compile`` means torch.compile on this device."""
        return device_type == "cuda" if self.compile is None else self.compile


@dataclass(frozen=True, kw_only=True)
class DistributedConfig(Options):
    """Several processes."""

    section: ClassVar[str] = "distributed."

    engine: Literal["auto", "ddp", "deepspeed"] = "auto"
    """``auto`` is DeepSpeed under the ``deepspeed`` launcher and DDP under any other."""
    zero_stage: int = option(1, at_least=0, at_most=3)
    """What DeepSpeed ZeRO splits among processes: 1 the optimizer's state, 2 also gradients, 3 also
    weights; 0 means plain DDP (bf16 under DeepSpeed's stage 0 is wrong)."""
    deepspeed_config: str | None = None
    """JSON file of further DeepSpeed settings (buckets, ``offload_optimizer`` and, in stage 3,
    ``offload_param`` to the CPU); keys the trainer owns or does not know are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.engine == "deepspeed" and self.zero_stage == 0),
            "distributed.zero_stage",
            0,
            "use distributed.engine=ddp for unsharded training",
        )

    @property
    def splits_weights(self) -> bool:
        """Whether no process has all weights (ZeRO-3)."""
        return self.engine == "deepspeed" and self.zero_stage == 3


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(ABC):
    """A run of any kind of training. Resolved and saved as ``runs/<name>/config.yaml``."""

    command: ClassVar[str]
    """Subcommand of ``tats-fast`` that takes this configuration."""

    name: str
    """Name of the run's folder."""
    output_dir: str = "runs"
    """Folder that holds the run's folder."""
    seed: int = 0
    """Seed of weights, clips, masks and augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is cuda where there is one."""

    def __post_init__(self) -> None:
        require(
            bool(self.name) and self.name not in (".", "..") and "/" not in self.name,
            "name",
            repr(self.name),
            "must be a plain folder name, for example tats_ssv2",
        )
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more")
        require(
            not self.train.keep_best or self.data.eval is not None,
            "train.keep_best",
            True,
            "needs evaluations to compare; name held-out videos with data.eval",
        )
        self.check_world_size(1)

    @abstractmethod
    def check_world_size(self, world_size: int) -> None:
        """Raise ``ConfigError`` unless the batch splits evenly over ranks and micro-batches."""

    @property
    @abstractmethod
    def listed_per_step(self) -> int:
        """What a step takes of the list, in the unit of ``batch_size`` and over all ranks: what
        epochs count."""

    @property
    @abstractmethod
    def windows_per_step(self) -> int:
        """Decoded windows per optimizer step, over all ranks."""

    @property
    @abstractmethod
    def clips_per_step(self) -> int:
        """Clips per optimizer step, over all ranks."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Values by key that no checkpoint may change for the run that resumes it."""


def check_batch(batch: int, **factors: int) -> None:
    """Require a batch that splits evenly; ``factors`` are what it is split by, by name ("__" for
    the dot of a key)."""
    names = [(name.replace("__", "."), count) for name, count in factors.items() if count > 1]
    product = 1
    for _, count in names:
        product *= count
    words = [f"{name}={n}" if "." in name else f"{name.replace('_', ' ')} {n}" for name, n in names]
    require(
        batch % product == 0,
        "train.batch_size",
        batch,
        f"must be divisible by {' x '.join(words)}, for example {nearest_multiple(batch, product)}",
    )
