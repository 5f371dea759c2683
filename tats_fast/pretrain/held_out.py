"""Held-out measures that do not depend on what the sampler chose: a fixed random mask for the
reconstruction, and draws of sampler, chance and frame difference side by side.
"""

from __future__ import annotations

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
    visible = visible_tokens("random", model, config.masking.ratio)
    # Two generators: the fixed mask must not depend on how many draws were made before it.
    masks, draws_of = (torch.Generator(clips.device).manual_seed(MASK_SEED) for _ in range(2))
    sums: dict[str, float] = {}
    was_training = mae.training
    mae.eval()
    for chunk in clips.split(CHUNK):
        patches = patchify(chunk, model.tubelet_size, model.patch_size)
        with autocast(clips.device, bf16):
            tokens, error = _rebuilt(mae, patches, visible, masks)
            policy = None if sampler is None else sampler(tokens)
        values = {"loss_recon_random": error.mean()}
        strategies = {"random": "random", "motion": "motion"}
        if policy is not None:
            strategies["sampler"] = "tats"
            values.update(policy_metrics(policy.log_p, policy.entropy))
        log_p = None if policy is None else policy.log_p
        motion = motion_energy(patches, model.tubelet_size)
        texture = roughness(patches, model.patch_size)
        for name, strategy in strategies.items():
            draws = [
                split_tokens(strategy, model, patches, log_p, visible, draws_of).visible_mask
                for _ in range(DRAWS)
            ]
            values[f"motion_lift_{name}"] = sum(lift(motion, draw) for draw in draws) / DRAWS
            values[f"roughness_lift_{name}"] = sum(lift(texture, draw) for draw in draws) / DRAWS
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.item() * len(chunk)
    mae.train(was_training)
    return {name: total / len(clips) for name, total in sums.items()}


@torch.no_grad()
def random_mask_loss(config: RunConfig, mae: MaskedAutoencoder, clips: Tensor, bf16: bool) -> float:
    """``loss_recon_random`` of ``held_out_metrics`` alone, under the same masks."""
    model, total = config.model, 0.0
    visible = visible_tokens("random", model, config.masking.ratio)
    masks = torch.Generator(clips.device).manual_seed(MASK_SEED)
    was_training = mae.training
    mae.eval()
    for chunk in clips.split(CHUNK):
        patches = patchify(chunk, model.tubelet_size, model.patch_size)
        with autocast(clips.device, bf16):
            error = _rebuilt(mae, patches, visible, masks)[1]
        total += error.mean().item() * len(chunk)
    mae.train(was_training)
    return total / len(clips)


def _rebuilt(
    mae: MaskedAutoencoder, patches: Tensor, visible: int, masks: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, C) of patches (B, N, D), and the errors (B, N_m) under random masks."""
    split = split_tokens("random", mae.config, patches, None, visible, masks)
    tokens = mae.embed(patches)
    prediction = mae.decode(mae.encode(tokens, split), split)
    return tokens, kernels.masked_mse(prediction, patches, split.masked)


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
    visible = visible_tokens("random", model, config.masking.ratio)
    generator = torch.Generator(device).manual_seed(MASK_SEED)
    with autocast(device, bf16):
        log_p = None if sampler is None else sampler(mae.embed(patches)).log_p
    strategies = {"random": "random", "motion": "motion"}
    if log_p is not None:
        strategies["sampler"] = "tats"
    lifts = {}
    for name, strategy in strategies.items():
        draws = [
            split_tokens(strategy, model, patches, log_p, visible, generator).visible_mask
            for _ in range(TRUE_DRAWS)
        ]
        mean = sum(lift(truth, draw) for draw in draws) / TRUE_DRAWS
        lifts[f"true_motion_lift_{name}"] = float(mean)
    return lifts
