"""Options of ``tats-fast plan``, apart from what computes with them, which is heavy to import."""

from __future__ import annotations

from dataclasses import dataclass

from tats_fast.config.checks import require
from tats_fast.config.options import Options, option

VIDEOS = {"kinetics400": 240_000, "ssv2": 168_913}
"""Training videos: of Kinetics-400 about those that can still be had, of SSv2 its list's."""
CHIPS = ("H100", "H200", "A100")


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """``tats-fast plan``."""

    model: str = option("vit_base", "size of the model (model.preset)")
    gpus: int = option(8, "GPUs, one process each", at_least=1)
    batch: int = option(64, "clips per GPU and micro-batch", at_least=1)
    zero: int = option(0, "DeepSpeed ZeRO stage; 0 is DDP", at_least=0, at_most=3)
    offload: str = option(
        "none",
        "what lies in the host's memory: the optimizer's state, or with --zero 3 the weights too",
        choices=("none", "optimizer", "weights"),
    )
    dataset: str = option("kinetics400", "what it trains on", choices=tuple(VIDEOS))
    videos: int | None = option(
        None, "training videos, where it is another data set", at_least=1, unset="the data set's"
    )
    chip: str = option("H100", "kind of GPU", choices=CHIPS)
    mfu: float = option(
        0.28, "model FLOP/s over the chip's, as measured with ViT-B on one H100", above=0, at_most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"none": 0, "optimizer": 1, "weights": 3}[self.offload]
        require(self.zero >= least, "--offload", self.offload, f"needs --zero {least} or more")
