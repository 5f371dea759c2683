"""What a pretraining run will take on GPUs: memory, FLOP, hours, storage. Counted, not measured."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from tats_fast.config import RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.engine.peak import MEMORY_GIB, PEAK_TFLOPS
from tats_fast.engine.videos import total_steps
from tats_fast.pretrain.flops import training_step
from tats_fast.pretrain.memory import (
    FP32,
    MOMENTS,
    Counts,
    Sharing,
    StepMemory,
    count_parameters,
    step_memory,
)
from tats_fast.pretrain.plan import plan_step
from tats_fast.pretrain.planner_options import VIDEOS, PlanOptions

USABLE = 0.9
"""Share of a GPU's memory for tensors: the rest is for its context and gaps between blocks."""
RECOMPUTED = 4 / 3
"""Time with ``train.recompute`` over that without: a second forward pass."""
MOST_CLIPS = 4096
SAMPLED_STEPS = 1000
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a run takes."""

    options: PlanOptions
    config: RunConfig
    """With the global batch that the options mean."""
    counts: Counts
    memory: StepMemory
    largest: int
    """Clips per GPU and micro-batch that fit; 0 = not one."""
    largest_recomputing: int

    @property
    def capacity(self) -> int:
        """Bytes of a GPU that tensors may take."""
        return round(USABLE * MEMORY_GIB[self.options.chip] * GIB)

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.capacity

    @property
    def videos(self) -> int:
        return self.options.videos or VIDEOS[self.options.dataset]

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return total_steps(self.config, self.videos)

    @property
    def flop(self) -> float:
        """Model FLOP of the run. Steps differ while the mask ratio moves or the sampler warms up,
        so up to ``SAMPLED_STEPS`` spread over the run are averaged."""
        count = min(self.steps, SAMPLED_STEPS)
        planned = [plan_step(self.config, step, count) for step in range(count)]
        per_clip = mean(training_step(self.config, step.visible, step.warmup) for step in planned)
        return self.steps * self.config.train.batch_size * per_clip

    @property
    def hours(self) -> float:
        """At the MFU that the options assume, on all GPUs."""
        rate = self.options.gpus * PEAK_TFLOPS[self.options.chip]["bf16"] * 1e12 * self.options.mfu
        seconds = self.flop / rate
        return seconds * (RECOMPUTED if self.config.train.recompute else 1) / 3600

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: weights, the moving average of them and moments; as many more of
        the first host's memory while it is written."""
        average = self.counts.mae if self.config.train.ema_decay > 0 else 0
        return FP32 * ((1 + MOMENTS) * (self.counts.mae + self.counts.sampler) + average)

    @property
    def storage(self) -> int:
        """Bytes of the checkpoints kept and the one being written."""
        train = self.config.train
        return (train.keep_checkpoints + train.keep_best + 1) * self.checkpoint


def make_plan(config: RunConfig, options: PlanOptions) -> Plan:
    """The plan of a run of ``config`` on GPUs, in bf16, compiled, with the fused kernels.

    Args:
        config: its ``train.batch_size`` and ``distributed`` follow from ``options`` instead.

    Raises:
        ConfigError: a batch that such a run would refuse.
    """
    counts = count_parameters(config)
    config = _with(config, options.gpus * options.batch * config.train.accumulation)
    config.check_world_size(options.gpus)
    plan = Plan(options, config, counts, _memory(config, counts, options), 0, 0)
    fitting = {
        recompute: _largest(_with(config, recompute=recompute), counts, options, plan.capacity)
        for recompute in (config.train.recompute, True)
    }
    return replace(plan, largest=fitting[config.train.recompute], largest_recomputing=fitting[True])


def _with(config: RunConfig, batch: int | None = None, **train: Any) -> RunConfig:
    if batch is not None:
        train["batch_size"] = batch
    return replace(config, train=replace(config.train, **train))


def _memory(
    config: RunConfig, counts: Counts, options: PlanOptions, clips: int | None = None
) -> StepMemory:
    sharing = Sharing(options.gpus, options.zero, offload=options.offload)
    how = {"bf16": True, "compiled": True, "fused": True}
    return step_memory(config, counts, sharing, clips=clips, **how)


def _largest(config: RunConfig, counts: Counts, options: PlanOptions, capacity: int) -> int:
    learned = config.masking.strategy in LEARNED_STRATEGIES
    unit = math.lcm(config.data.repeats, config.sampler.learn_every if learned else 1)

    def peak(clips: int) -> int:
        return _memory(config, counts, options, clips).peak

    return unit * bisect_right(range(unit, MOST_CLIPS, unit), capacity, key=peak)


def lines(plan: Plan) -> list[str]:
    """The plan in words and numbers."""
    options, train, memory = plan.options, plan.config.train, plan.memory
    per_clip = memory.activations / options.batch / GIB
    kinds = {
        "weights": memory.weights,
        "optimizer": memory.optimizer,
        "gradients": memory.gradients,
        "exchange of gradients": memory.communication,
        "gathered weights" if options.zero == 3 else "bf16 copies of weights": memory.casts,
        f"activations ({per_clip:.3f} per clip)": memory.activations,
        "last block of the backward pass": memory.last,
        "held between micro-batches": memory.held,
    }
    engine = f"ZeRO-{options.zero}" if options.zero else "DDP" if options.gpus > 1 else "alone"
    verdict = "fits" if plan.fits else "does NOT fit"
    largest = f"largest batch: {plan.largest} clips per GPU"
    if not train.recompute:
        largest += f", {plan.largest_recomputing} with train.recompute=true"
    return [
        f"{options.model}: {(plan.counts.mae + plan.counts.sampler) / 1e6:,.0f} M parameters, "
        f"{plan.counts.sampler / 1e6:,.0f} M of them the sampler's; {options.gpus} x "
        f"{options.chip} ({engine}), train.batch_size={train.batch_size}",
        "memory of each GPU, GiB:",
        *(f"  {name:32}{size / GIB:8.2f}" for name, size in kinds.items() if size),
        f"  {'peak (not their sum)':32}{memory.peak / GIB:8.2f}  {verdict} in "
        f"{plan.capacity / GIB:.1f} ({USABLE:.0%} of {MEMORY_GIB[options.chip]:g})",
        largest,
        *(
            [f"offloaded: {memory.host / GIB:.1f} GiB of the host's memory for each of its GPUs"]
            if memory.host
            else []
        ),
        f"work: {plan.flop / plan.steps / train.batch_size / 1e9:,.0f} GFLOP per clip, "
        f"{plan.flop:.3g} FLOP in {plan.steps:,} steps over {plan.videos:,} videos",
        f"time: {plan.hours:,.0f} hours at {options.mfu:.0%} MFU"
        f"{', recomputation included' if train.recompute else ''}; loading, exchange and "
        "evaluation are not in it",
        f"storage: {plan.storage / GIB:.1f} GiB for "
        f"{train.keep_checkpoints + train.keep_best} checkpoints and the "
        f"one being written; {plan.checkpoint / GIB:.1f} GiB of the first host's memory meanwhile",
    ]
