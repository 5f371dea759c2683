"""Memory of a pretraining process by kind, from the formulas of ``models/memory.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from tats_fast.config import RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.masking import decoder_length, visible_tokens
from tats_fast.models import memory
from tats_fast.models.restore import build_models

FP32 = 4
MOMENTS = 2
REDUCE_BUCKET = 500_000_000
"""Numbers in the buffer in which DeepSpeed gathers gradients, by default."""


@dataclass(frozen=True)
class Sharing:
    """How a run is spread: processes and ZeRO stage, 0 for DDP or one process."""

    processes: int = 1
    zero_stage: int = 0
    reduce_bucket: int = REDUCE_BUCKET


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
    """bf16 copies of the weights, while they are needed."""
    activations: int
    """Of a micro-batch, its clips included."""
    held: int
    """What micro-batches before the last leave for the inner epochs, and their gradients."""

    @property
    def peak(self) -> int:
        """At the end of the forward pass, where all activations are there and no gradient yet, or
        at the end of the backward pass, where it is the other way round."""
        forward = self.casts + self.activations + self.held
        rest = self.weights + self.optimizer + self.communication
        return rest + max(forward, self.gradients)


class Counts(NamedTuple):
    """Parameters of autoencoder and sampler, and numbers in fixed tables."""

    mae: int
    sampler: int
    tables: int


def count_parameters(config: RunConfig) -> Counts:
    """Those of the models of a run, which are built without memory."""
    with torch.device("meta"):
        models = build_models(config, "cpu")
    sizes = [sum(p.numel() for p in m.parameters()) if m is not None else 0 for m in models]
    tables = sum(table.numel() for m in models if m is not None for table in m.buffers())
    return Counts(*sizes, tables)


def activations(config: RunConfig, bf16: bool, compiled: bool, fused: bool) -> int:
    """Bytes that the joint pass keeps, per clip.

    Args:
        fused: whether the Triton kernels run.
    """
    model, strategy = config.model, config.masking.strategy
    visible = visible_tokens(strategy, model, config.masking.ratio)
    length = decoder_length(config.masking, visible, model.num_tokens)
    kept, draws = memory.numbers(bf16, compiled), config.masking.draws_per_clip
    stacks = [of.times(draws) for of in memory.mae_stacks(model, visible, length, kept)]
    total = memory.pixels(model) + memory.mae_entry(model, kept)
    total += draws * memory.mae_ends(model, visible, length, kept)
    if not fused:  # the composed loss keeps its difference in fp32
        total += draws * (length - visible) * model.patch_dim * (FP32 - kept.size)
    if strategy in LEARNED_STRATEGIES:
        stacks.append(memory.sampler_stack(model, config.sampler.attention, kept, fused))
        total += memory.sampler_ends(model, kept)
    return total + memory.blocks(stacks, config.train.recompute)


def step_memory(
    config: RunConfig,
    counts: Counts,
    sharing: Sharing,
    *,
    bf16: bool,
    compiled: bool,
    fused: bool,
) -> StepMemory:
    """Memory of one process of a run, whose ``train.batch_size`` is that of all of them.

    ZeRO splits the moments and its master copy of the weights among the processes, and from
    stage 2 the gradients; the sampler stays whole.
    """
    main, sampler, tables = counts
    processes, stage = sharing.processes, sharing.zero_stage
    share = processes if stage >= 1 else 1
    clips = config.train.batch_size // (processes * config.train.accumulation)
    gradients = main // (processes if stage >= 2 else 1) + sampler
    bucket = sharing.reduce_bucket if stage >= 1 else (main if processes > 1 else 0)
    size = 2 if bf16 else FP32
    waiting = config.train.accumulation - 1
    average = main if config.train.ema_decay > 0 else 0
    held = clips * config.model.num_tokens * config.model.width * size * waiting
    return StepMemory(
        weights=FP32 * (main + sampler + average + tables + (main // share if stage >= 1 else 0)),
        optimizer=FP32 * MOMENTS * (main // share + sampler),
        gradients=FP32 * gradients,
        communication=FP32 * bucket,
        casts=2 * (main + sampler) if bf16 else 0,
        activations=clips * activations(config, bf16, compiled, fused),
        held=held + (FP32 * gradients if waiting else 0),
    )
