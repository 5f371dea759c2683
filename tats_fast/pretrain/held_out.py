"""Held-out measures that do not depend on what the sampler chose: a fixed random mask for the
reconstruction, and draws of sampler, chance and frame difference side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.config import RunConfig
from tats_fast.engine.precision import autocast
from tats_fast.generated import Scenes
from tats_fast.generated.scenes import moving_share
from tats_fast.masking import split_tokens, visible_tokens
from tats_fast.models import MaskedAutoencoder, TokenSampler
from tats_fast.models.patchify import motion_energy, patchify, roughness
from tats_fast.rl.metrics import lift, policy_metrics

MASK_SEED = (
    20250508  # of the fixed mask and the draws; the same for every run, so that runs compare
)
DRAWS = 32  # draws per clip behind each lift
CHUNK = 8  # clips at a time
TRUE_CLIPS, TRUE_DRAWS = 64, 8  # behind each lift by what truly moves


@torch.no_grad()
def held_out_metrics(
    config: RunConfig,
    mae: MaskedAutoencoder,
    sampler: TokenSampler | None,
    clips: Tensor,
    bf16: bool,
) -> dict[str, float]:
    """Measure on fixed clips, uint8 (M, T, S, S, 3) on the models' device.

    Returns:
        ``loss_recon_random`` under the fixed random mask at ``masking.ratio``; ``motion_lift_*``
        and ``roughness_lift_*`` of draws by ``random``, ``motion`` and, with a sampler,
        ``sampler``; then also the policy's metrics.
    """
    model = config.model
    # Not the masks' own generator: they must not depend on how many draws were made before them.
    generator = torch.Generator(clips.device).manual_seed(MASK_SEED)
    sums: dict[str, float] = {}
    for patches, tokens, error in _rebuilt(config, mae, clips, bf16):
        values, log_p = {"loss_recon_random": error.mean()}, None
        if sampler is not None:
            with autocast(clips.device, bf16):
                policy = sampler(tokens)
            log_p = policy.log_p
            values.update(policy_metrics(log_p, policy.entropy))
        scores = {
            "motion": motion_energy(patches, model.tubelet_size),
            "roughness": roughness(patches, model.patch_size),
        }
        values.update(_lifts(config, patches, log_p, scores, DRAWS, generator))
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.item() * len(patches)
    return {name: total / len(clips) for name, total in sums.items()}


@torch.no_grad()
def random_mask_loss(config: RunConfig, mae: MaskedAutoencoder, clips: Tensor, bf16: bool) -> float:
    """``loss_recon_random`` of ``held_out_metrics`` alone, under the same masks."""
    rebuilt = _rebuilt(config, mae, clips, bf16)
    return sum(error.mean().item() * len(error) for *_, error in rebuilt) / len(clips)


def _rebuilt(
    config: RunConfig, mae: MaskedAutoencoder, clips: Tensor, bf16: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of one chunk of clips after the other the patches (B, N, D), their tokens (B, N, C), and the
    errors (B, N_m) under the fixed random masks."""
    model = config.model
    visible = visible_tokens("random", model, config.masking.ratio)
    masks = torch.Generator(clips.device).manual_seed(MASK_SEED)
    was_training = mae.training
    mae.eval()
    for chunk in clips.split(CHUNK):
        patches = patchify(chunk, model.tubelet_size, model.patch_size)
        with autocast(clips.device, bf16):
            split = split_tokens("random", model, patches, None, visible, masks)
            tokens = mae.embed(patches)
            prediction = mae.decode(mae.encode(tokens, split), split)
            error = kernels.masked_mse(prediction, patches, split.masked)
        yield patches, tokens, error
    mae.train(was_training)


def _lifts(
    config: RunConfig,
    patches: Tensor,
    log_p: Tensor | None,
    scores: Mapping[str, Tensor],
    count: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """``SCORE_lift_NAME``: how much of each score (B, N) ``count`` draws by each strategy see."""
    strategies = {"random": "random", "motion": "motion"}
    if log_p is not None:
        strategies["sampler"] = "tats"
    model = config.model
    visible = visible_tokens("random", model, config.masking.ratio)
    lifts = {}
    for name, strategy in strategies.items():
        draws = [
            split_tokens(strategy, model, patches, log_p, visible, generator).visible_mask
            for _ in range(count)
        ]
        for score, values in scores.items():
            lifts[f"{score}_lift_{name}"] = sum(lift(values, draw) for draw in draws) / count
    return lifts


@torch.no_grad()
def true_motion_lifts(
    config: RunConfig, mae: MaskedAutoencoder, sampler: TokenSampler | None, bf16: bool
) -> dict[str, float]:
    """Motion lifts by what truly moves, on generated clips that no run trains on.

    Returns:
        ``true_motion_lift_*`` of draws by ``random``, ``motion`` and, with a sampler, ``sampler``:
        the mean share of moving pixels in the visible tokens over that in all. Empty for a run
        without generated clips, and where everything moves.
    """
    model, device = config.model, mae.mask_token.device
    if config.generated_per_step == 0 or config.generated.task == "pan":
        return {}
    scenes = Scenes(config.generated, model.num_frames, model.image_size, MASK_SEED, device)
    batch = scenes.batch(TRUE_CLIPS, 0)
    truth = moving_share(batch.moving, model.tubelet_size, model.patch_size)
    patches = patchify(batch.clips, model.tubelet_size, model.patch_size)
    generator = torch.Generator(device).manual_seed(MASK_SEED)
    with autocast(device, bf16):
        log_p = None if sampler is None else sampler(mae.embed(patches)).log_p
    lifts = _lifts(config, patches, log_p, {"true_motion": truth}, TRUE_DRAWS, generator)
    return {name: float(value) for name, value in lifts.items()}
