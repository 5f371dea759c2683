"""Model FLOP of a pretraining step, from the formulas of ``models/flops.py``."""

from __future__ import annotations

from tats_fast.config import RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.masking import decoder_length, visible_tokens
from tats_fast.models import flops


def training_step(config: RunConfig, visible: int | None = None, warmup: bool = False) -> int:
    """Model FLOP of one training step, per clip: 3 (embedding + M rest of the autoencoder + K
    sampler passes), M = ``masking.draws_per_clip``; with n = ``sampler.learn_every`` the sampler's
    share of 3 K is 1 + 2 / n + 3 (K - 1) / n.

    The trajectory sampler counts at its absorbed cost whatever a path executes: the work to be
    done is the same for all of them, and a path that does more of it is not the faster for it. A
    teacher does not count: it is no part of what trains.

    Args:
        visible: N_v; None = as ``masking.ratio`` says.
        warmup: whether the sampler rests.
    """
    model, strategy = config.model, config.masking.strategy
    if visible is None:
        visible = visible_tokens(strategy, model, config.masking.ratio)
    mae = flops.mae(model, visible, decoder_length(config.masking, visible, model.num_tokens))
    total = mae.embedding + config.masking.draws_per_clip * (mae.total - mae.embedding)
    total *= flops.TRAINING_FACTOR
    if strategy in LEARNED_STRATEGIES and not warmup:
        passes = config.ppo.epochs if strategy == "tats" else 1
        sampler = flops.sampler(
            model, config.sampler.attention, config.sampler.heads, config.sampler.temporal_value
        )
        learning = flops.TRAINING_FACTOR * passes - 1
        total += sampler + learning * sampler // config.sampler.learn_every
    return total
