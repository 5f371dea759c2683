"""One optimizer step as a function: (learner, micro-batches, plan) -> metrics on the device.

Nothing here waits for the device: losses, the reward's scale and the decision to skip a non-finite
step all stay there. Legend: B clips, N tokens, N_m masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tats_fast import kernels
from tats_fast.config import MaskingConfig, RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.engine.distributed import World, draw_seed
from tats_fast.engine.optim import any_not_finite
from tats_fast.engine.precision import autocast
from tats_fast.engine.runner import Runner, update
from tats_fast.masking import draw_order, split_for_training, uniform_noise
from tats_fast.models import Policy, TokenSampler, TokenSplit
from tats_fast.models.patchify import patchify, token_statistics
from tats_fast.rl import Experience, RewardScale, make_experience, sampler_loss, token_rewards
from tats_fast.rl.metrics import frame_spread, lift, policy_metrics
from tats_fast.rl.ppo import adamae_loss, explained_variance


@dataclass
class Learner:
    """Everything that a step changes, and what it needs to do so."""

    config: RunConfig
    world: World
    runner: Runner
    sampler: TokenSampler | None
    sampler_optimizer: torch.optim.Optimizer | None
    reward_scale: RewardScale
    generator: torch.Generator
    bf16: bool
    statistics: Callable[..., tuple[Tensor, Tensor]] = token_statistics
    """``token_statistics``, compiled or not."""

    def model_state(self) -> dict[str, Any]:
        """What a checkpoint's ``model.pt`` holds."""
        sampler = self.sampler
        return {
            "mae": self.runner.module.state_dict(),
            "sampler": None if sampler is None else sampler.state_dict(),
        }

    def trainer_state(self) -> dict[str, Any]:
        """What else continues this training, beside the autoencoder's optimizer."""
        optimizer = self.sampler_optimizer
        return {
            "sampler_optimizer": None if optimizer is None else optimizer.state_dict(),
            "reward_scale": self.reward_scale._asdict(),
        }

    def load_state(self, model: dict[str, Any], trainer: dict[str, Any]) -> None:
        """Take over what the two gave."""
        self.runner.module.load_state_dict(model["mae"])
        if self.sampler is not None:
            self.sampler.load_state_dict(model["sampler"])
            self.sampler_optimizer.load_state_dict(trainer["sampler_optimizer"])
        scale = trainer["reward_scale"].items()
        self.reward_scale = RewardScale(**{k: v.to(self.world.device) for k, v in scale})


@dataclass(frozen=True)
class StepPlan:
    """What the host decides about one step."""

    step: int
    lr: float
    visible: int
    """N_v of this step."""
    warmup: bool
    """Draw at random and let the sampler rest."""


@dataclass
class _MicroBatch:
    """What one micro-batch leaves behind for the sampler's further updates."""

    tokens: Tensor
    experience: Experience | None
    policy: Policy | None
    metrics: dict[str, Tensor]


def train_step(learner: Learner, clips: list[Tensor], plan: StepPlan) -> dict[str, Tensor]:
    """Train on one global batch's share of this process.

    Args:
        clips: one uint8 tensor (B, T, S, S, 3) per micro-batch, on the device.

    Returns:
        0-d tensors by name (docs/metrics.md), means over micro-batches and processes.
        ``skipped`` is 1 where a loss or a gradient norm was not finite; that update and those
        after it in the step were left out.
    """
    learner.generator.manual_seed(draw_seed(learner.config.seed, plan.step, learner.world.rank))
    passes = []
    for index, batch in enumerate(clips):
        with learner.runner.accumulating(last=index == len(clips) - 1):
            passes.append(_micro_step(learner, batch, plan))
    metrics = {
        name: torch.stack([done.metrics[name] for done in passes]).mean()
        for name in passes[0].metrics
    }
    losses = [metrics[name] for name in _LOSSES if name in metrics]
    skip = any_not_finite(learner.world, losses)

    skip = learner.runner.step(plan.lr, skip)
    if passes[0].policy is not None:
        skip = _update_sampler(learner, plan, skip)
    if passes[0].experience is not None:
        skip = _further_epochs(learner, passes, plan, skip, metrics)
    names = sorted(metrics)
    means = learner.world.mean(torch.stack([metrics[name].detach().float() for name in names]))
    return {**dict(zip(names, means.unbind(), strict=True)), "skipped": skip}


_LOSSES = ("loss_recon", "loss_policy", "loss_value")


def _micro_step(learner: Learner, clips: Tensor, plan: StepPlan) -> _MicroBatch:
    config, sampler = learner.config, learner.sampler
    model = config.model
    patches = patchify(clips, model.tubelet_size, model.patch_size)
    learns = config.masking.strategy in LEARNED_STRATEGIES and not plan.warmup
    strategy = "random" if plan.warmup else config.masking.strategy
    policy: Policy | None = None
    motion, texture = learner.statistics(patches, model.tubelet_size, model.patch_size)

    def choose(tokens: Tensor, patches: Tensor) -> TokenSplit:
        nonlocal policy
        if learns:
            assert sampler is not None
            noise = uniform_noise(*patches.shape[:2], learner.generator)
            policy = sampler(tokens.detach() if config.sampler.detach_tokens else tokens, noise)
            order = policy.order
        else:
            order = draw_order(strategy, model, patches, None, learner.generator)
        scores = _budget_scores(config.masking, policy, motion)
        return split_for_training(config.masking, order, plan.visible, learner.generator, scores)

    with autocast(clips.device, learner.bf16):
        prediction, split, tokens = learner.runner.forward(patches, choose)
        error = kernels.masked_mse(prediction, patches, split.masked)
    loss = loss_recon = error.mean()
    metrics = {
        "loss_recon": loss_recon.detach(),
        "motion_lift": lift(motion, split.shown),
        "roughness_lift": lift(texture, split.shown),
        "frame_spread": frame_spread(split.shown, model.token_frames),
    }
    if split.packing is not None:
        metrics["budget_spread"] = split.counts.float().std(correction=0) / plan.visible
    experience = None
    if policy is not None:
        per_token = split.scatter(error.detach())
        sampling, experience = _sampler_loss(learner, policy, split, per_token, motion, metrics)
        # One backward for both: their parameters are disjoint (unless the user attached the
        # tokens), and DeepSpeed wants a single backward per micro-batch.
        loss = loss_recon + sampling
    learner.runner.backward(loss)
    return _MicroBatch(tokens.detach(), experience, policy, metrics)


def _budget_scores(masking: MaskingConfig, policy: Policy | None, motion: Tensor) -> Tensor | None:
    """What an adaptive budget follows, (B,); None for a fixed one."""
    if masking.budget == "fixed":
        return None
    if masking.budget_by == "motion":
        return motion.mean(dim=1).sqrt()
    return torch.ones_like(motion[:, 0]) if policy is None else policy.entropy.detach().exp()


def _sampler_loss(
    learner: Learner,
    policy: Policy,
    split: TokenSplit,
    error: Tensor,
    motion: Tensor,
    metrics: dict[str, Tensor],
) -> tuple[Tensor, Experience | None]:
    """The sampler's loss for the draw it just made, from errors (B, N) that are 0 where nothing is
    scored; adds its metrics. No experience for AdaMAE."""
    config = learner.config
    with torch.no_grad():
        metrics.update(policy_metrics(policy.log_p, policy.entropy))
    if config.masking.strategy == "adamae":
        loss = adamae_loss(policy.log_p, split, error)
        metrics["loss_policy"] = loss.detach()
        return loss, None
    raw = token_rewards(config.ppo.reward, error, motion)
    experience, learner.reward_scale = make_experience(
        config.ppo, policy, split, raw, learner.reward_scale, learner.world.mean
    )
    parts = sampler_loss(config.ppo, policy, experience)
    metrics.update(
        loss_policy=parts.policy,
        loss_value=parts.value,
        approx_kl=parts.approx_kl,
        clip_frac=parts.clip_frac,
        explained_variance=explained_variance(experience.value, experience.reward),
    )
    return parts.total, experience


def _further_epochs(
    learner: Learner,
    passes: list[_MicroBatch],
    plan: StepPlan,
    skip: Tensor,
    metrics: dict[str, Tensor],
) -> Tensor:
    """PPO's inner epochs 2..K on the stored batch; the autoencoder's pass and errors are reused.

    The first epoch ran inside the joint backward: there the ratio is exactly 1. Leaves the last
    epoch's ``approx_kl`` and ``clip_frac`` in ``metrics`` and returns whether anything was skipped.
    """
    ppo = learner.config.ppo
    for _ in range(ppo.epochs - 1):
        parts = []
        for done in passes:
            with autocast(done.tokens.device, learner.bf16):
                policy = learner.sampler(done.tokens)
            parts.append(sampler_loss(ppo, policy, done.experience))
            (parts[-1].total / len(passes)).backward()
        failed = any_not_finite(learner.world, [part.total.detach() for part in parts])
        skip = _update_sampler(learner, plan, torch.maximum(skip, failed))
        for name in ("approx_kl", "clip_frac"):
            metrics[name] = torch.stack([getattr(part, name) for part in parts]).mean()
    return skip


def _update_sampler(learner: Learner, plan: StepPlan, skip: Tensor) -> Tensor:
    learner.world.average_gradients(learner.sampler.parameters())
    return update(
        learner.sampler_optimizer,
        learner.sampler,
        plan.lr * learner.config.ppo.lr_scale,
        learner.config.optim.grad_clip,
        skip,
    )
