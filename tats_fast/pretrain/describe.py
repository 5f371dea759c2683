"""What silently decides a result, in words for the start of a run."""

from __future__ import annotations

from pathlib import Path

from tats_fast import kernels
from tats_fast.config import RunConfig
from tats_fast.data.loader import resolved_backend
from tats_fast.engine.distributed import World
from tats_fast.masking import visible_tokens
from tats_fast.models.attention import choose_backend


def kernel_levels(device_type: str) -> list[str]:
    """Which implementations of the hot ops run.

    Raises:
        ValueError: ``TATS_KERNELS`` names one that cannot.
    """
    return sorted({kernels.resolved_level(op, device_type) for op in kernels.ops()})


def describe(config: RunConfig, world: World, num_videos: int, steps: int) -> str:
    """What silently decides a result, said at the start."""
    train, optim, model = config.train, config.optim, config.model
    batch = train.batch_size
    micro = batch // (world.size * train.accumulation)
    scale = batch / 256
    masking = config.masking
    visible = visible_tokens(masking.strategy, model, masking.ratio)
    shared = "" if masking.budget == "fixed" else f" on average, shared out by {masking.budget_by}"
    device = world.device.type
    return "\n".join(
        [
            f"run {Path(config.output_dir) / config.name}: {num_videos} videos, {steps} steps, "
            f"{world.size} process(es) on {device} ({config.distributed.engine})",
            f"global batch {batch} = {world.size} processes x {train.accumulation} micro-batches x "
            f"{micro} clips; learning rate {optim.base_lr * scale:.3g} peak, "
            f"{optim.min_lr * scale:.3g} at the end (base {optim.base_lr:g} x {batch}/256)",
            f"masking {masking.strategy}: {visible} of {model.num_tokens} tokens visible "
            f"(ratio {masking.ratio:g}){shared}; {masking.decoder_keep_ratio:.0%} of the others "
            "rebuilt",
            f"attention {choose_backend(model.attention, device)}, "
            f"kernels {'+'.join(kernel_levels(device))}, "
            f"decoding {resolved_backend(config.data.backend, device)} "
            f"with {config.data.workers} worker(s), {config.data.repeats} clip(s) per window",
        ]
    )
