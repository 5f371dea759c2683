"""Memory of a pretraining process by kind, from the formulas of ``models/memory.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from tats_fast.config import RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.engine.zero3 import LIVE
from tats_fast.masking import decoder_length, mask_ratio_at, visible_tokens
from tats_fast.models import memory
from tats_fast.models.execution import blocks
from tats_fast.models.restore import build_models

FP32 = 4
MOMENTS = 2
REDUCE_BUCKET = 500_000_000
"""Numbers in the buffer in which DeepSpeed gathers gradients, by default."""
WITHIN = 5 / 3
"""Bytes in the backward pass of a block over those it keeps: the gradients within it come on top.
Measured on a CPU with ViT-B and ViT-L, recomputed: 1.65."""
PERSISTENT = 100_000
"""Up to so many numbers a parameter stays whole under ZeRO-3, by default."""


@dataclass(frozen=True)
class Sharing:
    """How a run is spread: processes and ZeRO stage, 0 for DDP or one process."""

    processes: int = 1
    zero_stage: int = 0
    reduce_bucket: int = REDUCE_BUCKET
    offload: str = "none"
    """What lies in the host's memory: ``none``, the ``optimizer``'s state, with it the ``weights``
    (stage 3)."""
    persistent: int = PERSISTENT
    live: int = LIVE
    """Most weights that ZeRO-3 has gathered at once (``stage3_max_live_parameters``)."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device of one process. Peaks of tensors, without the context of the device and
    what its allocator cannot use."""

    weights: int
    """Parameters and fixed positions, with the master copy that ZeRO keeps and the moving
    average."""
    optimizer: int
    gradients: int
    communication: int
    """Buffers in which gradients are exchanged."""
    casts: int
    """Copies of the weights while they are needed: in bf16, and gathered under ZeRO-3."""
    activations: int
    """Of a micro-batch, its clips included."""
    held: int
    """What micro-batches before the last leave for the inner epochs, and their gradients."""
    last: int
    """In the backward pass of the block that comes last: what it kept or makes again, and the
    gradients within it."""
    host: int = 0
    """Of the host's memory instead, by offloading."""

    @property
    def peak(self) -> int:
        """At the end of the forward pass, where all activations are there and no gradient yet, or
        in the last block of the backward pass, where the others' are gone and all gradients
        there."""
        forward = self.casts + self.activations + self.held
        rest = self.weights + self.optimizer + self.communication
        return rest + max(forward, self.gradients + self.last)


class Counts(NamedTuple):
    """Parameters of autoencoder and sampler, numbers in fixed tables, and of the autoencoder's
    parameters the largest block's and the size of each."""

    mae: int
    sampler: int
    tables: int
    block: int
    sizes: tuple[int, ...]


def count_parameters(config: RunConfig) -> Counts:
    """Those of the models of a run, which are built without memory."""
    with torch.device("meta"):
        models = build_models(config, "cpu")
    sizes = [sum(p.numel() for p in m.parameters()) if m is not None else 0 for m in models]
    tables = sum(table.numel() for m in models if m is not None for table in m.buffers())
    block = max(sum(p.numel() for p in block.parameters()) for block in blocks(models[0]))
    return Counts(*sizes, tables, block, tuple(p.numel() for p in models[0].parameters()))


def most_visible(config: RunConfig) -> int:
    """N_v where it is largest: a schedule of the ratio has that at its start or at its end."""
    ratio = min(mask_ratio_at(config.masking, progress) for progress in (0, 1))
    return visible_tokens(config.masking.strategy, config.model, ratio)


def activations(config: RunConfig, bf16: bool, compiled: bool, fused: bool) -> int:
    """Bytes that the joint pass keeps, per clip, where it sees most.

    Args:
        fused: whether the Triton kernels run.
    """
    model, strategy = config.model, config.masking.strategy
    visible = most_visible(config)
    length = decoder_length(config.masking, visible, model.num_tokens)
    kept, draws = memory.numbers(bf16, compiled), config.masking.draws_per_clip
    stacks = [of.times(draws) for of in memory.mae_stacks(model, visible, length, kept)]
    total = memory.pixels(model) + memory.mae_entry(model, kept)
    total += draws * memory.mae_ends(model, visible, length, kept)
    if not fused:  # the composed loss keeps its difference in fp32
        total += draws * (length - visible) * model.patch_dim * (FP32 - kept.size)
    if strategy in LEARNED_STRATEGIES:
        stacks.append(_sampler_stack(config, kept, fused))
        total += memory.sampler_ends(model, kept) // config.sampler.learn_every
    return total + memory.blocks(stacks, config.train.recompute)


def _sampler_stack(config: RunConfig, kept: memory.Numbers, fused: bool) -> memory.Stack:
    """Of the clips that teach it, per clip."""
    of = memory.sampler_stack(config.model, config.sampler.attention, kept, fused)
    every = config.sampler.learn_every
    return of._replace(block=of.block // every, entry=of.entry // every)


def last_block(config: RunConfig, bf16: bool, compiled: bool, fused: bool) -> int:
    """Bytes per clip that the block keeps whose backward pass is the last, as its forward pass was
    the first: the sampler's, else one of the encoder's."""
    model, masking, kept = config.model, config.masking, memory.numbers(bf16, compiled)
    if masking.strategy in LEARNED_STRATEGIES:
        return _sampler_stack(config, kept, fused).block
    visible = most_visible(config)
    return masking.draws_per_clip * memory.mae_stacks(model, visible, visible, kept)[0].block


def step_memory(
    config: RunConfig,
    counts: Counts,
    sharing: Sharing,
    *,
    bf16: bool,
    compiled: bool,
    fused: bool,
    clips: int | None = None,
) -> StepMemory:
    """Memory of one process of a run, whose ``train.batch_size`` is that of all of them.

    ZeRO splits the moments and its master copy of the weights, from stage 2 the gradients, and in
    stage 3 the weights, of which ``live`` are whole at a time; the sampler stays whole.

    Args:
        clips: of a micro-batch, whatever ``train.batch_size`` says.
    """
    main, sampler, tables = counts.mae, counts.sampler, counts.tables
    processes, stage = sharing.processes, sharing.zero_stage
    share = main // processes if stage >= 1 else main
    if clips is None:
        clips = config.train.batch_size // (processes * config.train.accumulation)
    size = 2 if bf16 else FP32
    waiting = config.train.accumulation - 1
    held = clips * config.model.num_tokens * config.model.width * size * waiting
    # DeepSpeed keeps a copy to update, its partition's, also in stage 3 (0.19.8).
    weights = (share if stage == 3 else main) + (share if stage >= 1 else 0)
    average = (share if stage == 3 else main) if config.train.ema_decay > 0 else 0
    gradients = share if stage >= 2 else main
    bucket = FP32 * (sharing.reduce_bucket if stage >= 1 else (main if processes > 1 else 0))
    casts = 2 * (main + sampler) if bf16 else 0  # autocast's, kept for the backward pass
    if stage == 3:
        whole = [n for n in counts.sizes if n <= sharing.persistent]
        gathered = min(main - sum(whole), max(counts.block, sharing.live))
        # Twice: as an exchange gave them, until the last of its weights was used, and in fp32.
        casts += (size + FP32) * gathered + FP32 * sum(whole)
        bucket += 2 * sharing.reduce_bucket if bf16 else 0  # one for each precision
        bucket += FP32 * share if sharing.offload == "none" else 0  # kept from step to step
    moments = MOMENTS * share
    host = 0
    if sharing.offload != "none":  # moments, the master copy and gradients
        host += FP32 * (moments + 2 * share)
        moments, gradients = 0, 0 if stage == 3 else gradients
        weights -= share
    if sharing.offload == "weights":
        host, weights, average = host + FP32 * (weights + average), 0, 0
    return StepMemory(
        weights=FP32 * (weights + sampler + average + tables),
        optimizer=FP32 * (moments + MOMENTS * sampler),
        gradients=FP32 * (gradients + sampler),
        communication=bucket,
        casts=casts,
        activations=clips * activations(config, bf16, compiled, fused),
        last=round(WITHIN * clips * last_block(config, bf16, compiled, fused)),
        held=held + (FP32 * (gradients + sampler) if waiting else 0),
        host=host,
    )
