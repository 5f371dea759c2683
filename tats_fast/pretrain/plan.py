"""What the host decides about a step: learning rate, mask ratio, warm-up."""

from __future__ import annotations

from tats_fast.config import RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.engine.optim import lr_at
from tats_fast.masking import mask_ratio_at, visible_tokens
from tats_fast.pretrain.step import StepPlan


def plan_step(config: RunConfig, step: int, total_steps: int) -> StepPlan:
    """The plan of optimizer step ``step`` (from 0) of ``total_steps``."""
    ratio = mask_ratio_at(config.masking, step / max(1, total_steps - 1))
    warmup = config.masking.strategy in LEARNED_STRATEGIES and (
        step < round(config.sampler.warmup_frac * total_steps)
    )
    return StepPlan(
        step=step,
        lr=lr_at(config.optim, step, total_steps, config.train.batch_size),
        visible=visible_tokens(config.masking.strategy, config.model, ratio),
        warmup=warmup,
    )
