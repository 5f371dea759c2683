"""One optimizer step of TATS as a function: (learner, micro-batches, plan) -> metrics.

The nine lines of ``docs/method.md``, "Learning the sampler", read from top to bottom: six in
``Rollout.forward``, three in ``seeded_step``; each is one function. Nothing here waits for the
device: losses, the reward's scale and the decision to skip a non-finite step all stay there.
Legend: B clips, M draws of each, N tokens, N_m masked tokens, D numbers per patch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tats_fast import kernels
from tats_fast.config import RunConfig
from tats_fast.config.schema import CHANGE_REWARDS, LEARNED_STRATEGIES
from tats_fast.engine.distributed import draw_seed
from tats_fast.engine.optim import any_not_finite
from tats_fast.engine.precision import autocast
from tats_fast.engine.runner import update
from tats_fast.masking import StepDraws, Uniform, draw_order, split_for_training
from tats_fast.models import (
    MaskedAutoencoder,
    Policy,
    TokenSampler,
    TokenSplit,
    policy_learning_from,
)
from tats_fast.pretrain.teacher import FeatureHead, feature_error, teacher_features
from tats_fast.rl import (
    Experience,
    RewardStatistics,
    make_experience,
    sampler_loss,
    token_rewards,
)
from tats_fast.rl.metrics import frame_spread, lift, policy_metrics
from tats_fast.rl.ppo import adamae_loss, explained_variance

if TYPE_CHECKING:
    from tats_fast.pretrain.learner import Learner

LOSSES = ("loss_recon", "loss_teacher", "loss_policy", "loss_value")


@dataclass(frozen=True)
class StepPlan:
    """What the host decides about one step."""

    step: int
    lr: float | Tensor
    """A 0-d fp64 tensor on the device where the step becomes a CUDA graph."""
    visible: int
    """N_v of this step."""
    warmup: bool
    """Draw at random and let the sampler rest."""


class Drawing(NamedTuple):
    """What a draw depends on besides the tokens."""

    plan: StepPlan
    sampler: TokenSampler | None
    uniform: Uniform
    motion: Tensor
    """(B, N): temporal-difference energy of each token."""


@dataclass
class MicroBatch:
    """What a micro-batch leaves behind for the losses and the sampler's inner epochs."""

    tokens: Tensor
    """(B, N, C), before positions."""
    policy: Policy | None
    split: TokenSplit
    error: Tensor
    """(B M, N_m), packed (T,): squared error of each rebuilt token; with a teacher the weighted sum
    of its pixels' and its features'."""
    change: Tensor | None = None
    """The same of its ``change_error``, where that is the reward."""
    experience: Experience | None = None
    rewards: RewardStatistics | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Rollout(nn.Module):
    """Lines 1 to 6: draw the visible tokens and rebuild the others.

    One forward, because DDP and DeepSpeed expect a single forward of the module that they wrap to
    touch every parameter. The sampler is an argument and so no part of that module: it is updated
    several times per step, by an optimizer of its own.
    """

    def __init__(
        self, mae: MaskedAutoencoder, config: RunConfig, features: int | None = None
    ) -> None:
        """features: width of a teacher's, which are then predicted beside the pixels."""
        super().__init__()
        self.mae = mae
        self.config = config
        self.feature_head = None
        if features is not None:
            self.feature_head = FeatureHead(config.model.decoder_width, features)

    def forward(
        self, patches: Tensor, drawing: Drawing, features: Tensor | None = None
    ) -> MicroBatch:
        """Patches (B, N, D), uint8 or float in [0, 1], and a teacher's features (B, N, C) of them,
        to errors."""
        tokens = self.mae.embed(patches)  # 1
        policy = sample_policy(self.config, tokens, drawing)  # 2
        split = draw(self.config, policy, patches, tokens, drawing)  # 3
        latent = self.mae.encode(tokens, split)  # 4
        last = self.mae.decode_tokens(latent, split)  # 5
        prediction, masked = split.by_clip(self.mae.predict(last)), split.by_clip(split.masked)
        error = kernels.masked_mse(prediction, patches, masked).view(split.masked.shape)  # 6
        change = None
        by_ppo = policy is not None and self.config.masking.strategy == "tats"
        if by_ppo and self.config.ppo.reward in CHANGE_REWARDS:
            tubelet = self.config.model.tubelet_size
            change = kernels.change_error(prediction, patches, masked, tubelet)
            change = change.view(split.masked.shape)
        metrics = {"loss_recon": error.detach().mean()}
        if features is not None:
            own = feature_error(self.feature_head(last), features, split)
            metrics["loss_teacher"] = own.detach().mean()
            error = self.config.teacher.pixels * error + self.config.teacher.weight * own
        return MicroBatch(tokens, policy, split, error, change, metrics=metrics)


def pretrain_step(learner: Learner, clips: list[Tensor], plan: StepPlan) -> dict[str, Tensor]:
    """Train on one global batch's share of this process.

    Args:
        clips: one uint8 tensor (B, T, S, S, 3) per micro-batch, on the device.

    Returns:
        0-d tensors by name (docs/metrics.md), means over micro-batches and processes.
        ``skipped`` is 1 where a loss or a gradient norm was not finite; that update and those
        after it in the step were left out.
    """
    seed_draws(learner, plan.step)
    return seeded_step(learner, clips, plan)


def seed_draws(learner: Learner, step: int) -> None:
    """Make the draws of step ``step`` those it had whenever it was run before, by however many
    processes."""
    learner.generator.manual_seed(draw_seed(learner.config.seed, step))


def seeded_step(learner: Learner, clips: list[Tensor], plan: StepPlan) -> dict[str, Tensor]:
    """``pretrain_step`` after its seed: nothing but launches, in an order that ``warmup``,
    ``visible`` and the shapes of ``clips`` fix, and so fit for a CUDA graph."""
    world = learner.world
    batches, own = [], sum(map(len, clips))
    draws, first = StepDraws(learner.generator, own * world.size), own * world.rank
    for index, micro_batch in enumerate(clips):
        uniform, first = draws.of_clips(first), first + len(micro_batch)
        with learner.runner.accumulating(last=index == len(clips) - 1):
            batch, motion = roll_out(learner, micro_batch, plan, uniform)  # 1 to 6
            loss = batch.error.mean()
            if batch.policy is not None:
                # One backward for both: their parameters are disjoint (unless the user attached
                # the tokens), and DeepSpeed wants a single backward per micro-batch.
                loss = loss + credit(learner, batch, motion)  # 7
            learner.runner.backward(loss)
        # What waits for the inner epochs must not hold on to the graph.
        batch.tokens, batch.error = batch.tokens.detach(), batch.error.detach()
        batches.append(batch)
    update_reward_scale(learner, batches)
    metrics = {
        name: torch.stack([batch.metrics[name] for batch in batches]).mean()
        for name in batches[0].metrics
    }
    skip = any_not_finite(world, [metrics[name] for name in LOSSES if name in metrics])
    skip = update_networks(learner, batches, plan, skip, metrics)  # 8
    skip = inner_epochs(learner, batches, plan, skip, metrics)  # 9
    names = sorted(metrics)
    means = world.mean(torch.stack([metrics[name].detach().float() for name in names]))
    return {**dict(zip(names, means.unbind(), strict=True)), "skipped": skip}


def roll_out(
    learner: Learner, clips: Tensor, plan: StepPlan, uniform: Uniform
) -> tuple[MicroBatch, Tensor]:
    """A micro-batch's ``Rollout`` with its metrics, and the tokens' motion energy (B M, N)."""
    model = learner.config.model
    patches, motion, texture = learner.cut(clips, model.tubelet_size, model.patch_size)
    with autocast(clips.device, learner.bf16):
        drawing = Drawing(plan, learner.sampler, uniform, motion)
        if learner.teacher is None:
            batch = learner.runner.forward(patches, drawing)
        else:
            features = teacher_features(learner.teacher, patches)
            batch = learner.runner.forward(patches, drawing, features)
    split = batch.split
    motion, texture = split.by_draw(motion), split.by_draw(texture)
    batch.metrics.update(
        motion_lift=lift(motion, split.visible_mask),
        roughness_lift=lift(texture, split.visible_mask),
        frame_spread=frame_spread(split.visible_mask, model.token_frames),
    )
    if split.packing is not None:
        batch.metrics["budget_spread"] = split.counts.float().std(correction=0) / plan.visible
    return batch, motion


def sample_policy(config: RunConfig, tokens: Tensor, drawing: Drawing) -> Policy | None:
    """The sampler's policy with a drawn order; None where nothing learned draws."""
    if config.masking.strategy not in LEARNED_STRATEGIES or drawing.plan.warmup:
        return None
    assert drawing.sampler is not None
    noise = drawing.uniform(*tokens.shape[:2])
    tokens = tokens.detach() if config.sampler.detach_tokens else tokens
    return policy_learning_from(config.sampler.learn_every, drawing.sampler, tokens, noise)


def draw(
    config: RunConfig, policy: Policy | None, patches: Tensor, tokens: Tensor, drawing: Drawing
) -> TokenSplit:
    """Cut the policy's order, or that of a strategy without one, into visible and masked tokens.
    Further draws of the same clips are drawn as the first was, with numbers of their own."""
    plan, uniform, motion = drawing.plan, drawing.uniform, drawing.motion
    strategy = "random" if plan.warmup else config.masking.strategy
    log_p, orders = None, []
    if policy is not None:
        log_p, orders = policy.log_p.detach(), [policy.order]
    while len(orders) < config.masking.draws_per_clip:
        orders.append(draw_order(strategy, config.model, patches, log_p, uniform, tokens, motion))
    order = orders[0] if len(orders) == 1 else torch.stack(orders, dim=1).flatten(0, 1)
    scores = _budget_scores(config, policy, drawing.motion)
    return split_for_training(config.masking, order, plan.visible, uniform, scores)


def _budget_scores(config: RunConfig, policy: Policy | None, motion: Tensor) -> Tensor | None:
    """What an adaptive budget follows, (B,); None for a fixed one."""
    if config.masking.budget == "fixed":
        return None
    if config.masking.budget_by == "motion":
        return motion.mean(dim=1).sqrt()
    return torch.ones_like(motion[:, 0]) if policy is None else policy.entropy.detach().exp()


def policy_of_draws(policy: Policy, split: TokenSplit) -> Policy:
    """The policy of each draw: its clip's."""
    return Policy(*(None if part is None else split.by_draw(part) for part in policy[:3]))


def credit(learner: Learner, batch: MicroBatch, motion: Tensor) -> Tensor:
    """The sampler's loss for the draws it just made; leaves experience and metrics in ``batch``.

    Every draw of a clip is an experience of its own, of one state. AdaMAE's loss leaves none: it
    has no inner epochs. The loss is a mean over all clips; where only every n-th has gradients, n
    times that has the gradient of their mean.
    """
    config, policy, metrics = learner.config, batch.policy, batch.metrics
    every = config.sampler.learn_every
    error = batch.split.scatter(batch.error.detach())  # (B, N), 0 where nothing is scored
    with torch.no_grad():
        metrics.update(policy_metrics(policy.log_p, policy.entropy))
    policy = policy_of_draws(policy, batch.split)
    if config.masking.strategy == "adamae":
        loss = adamae_loss(policy.log_p, batch.split, error)
        metrics["loss_policy"] = loss.detach()
        return every * loss
    if batch.change is not None:
        error = batch.split.scatter(batch.change)
    rewards = token_rewards(config.ppo.reward, error, motion)
    batch.experience, batch.rewards = make_experience(
        config.ppo, policy, batch.split, rewards, learner.reward_scale
    )
    losses = sampler_loss(config.ppo, policy, batch.experience)
    metrics.update(
        loss_policy=losses.policy,
        loss_value=losses.value,
        approx_kl=losses.approx_kl,
        clip_frac=losses.clip_frac,
        explained_variance=explained_variance(batch.experience.value, batch.experience.reward),
    )
    return every * losses.total


def update_reward_scale(learner: Learner, batches: list[MicroBatch]) -> None:
    """What the next step's rewards are measured by: the scale after all of this step's."""
    if batches[0].rewards is not None:
        whole = RewardStatistics.of_all([batch.rewards for batch in batches], learner.world.mean)
        momentum = learner.config.ppo.reward_momentum
        learner.reward_scale = learner.reward_scale.update(*whole, momentum)


def update_networks(
    learner: Learner,
    batches: list[MicroBatch],
    plan: StepPlan,
    skip: Tensor,
    metrics: dict[str, Tensor],
) -> Tensor:
    """One update of the autoencoder and, where it drew, of the sampler; adds the gradients' norms
    to ``metrics`` and returns whether an update was skipped (0-d, fp32)."""
    skip, metrics["grad_norm"] = learner.runner.step(plan.lr, skip)
    if learner.average is not None:
        learner.average.update(skip)
    if batches[0].policy is not None:
        skip = update_sampler(learner, plan, skip, metrics)
    return skip


def inner_epochs(
    learner: Learner,
    batches: list[MicroBatch],
    plan: StepPlan,
    skip: Tensor,
    metrics: dict[str, Tensor],
) -> Tensor:
    """PPO's epochs 2 to K on the stored micro-batches; the autoencoder's errors are reused.

    The first epoch was part of the joint backward: there the ratio is exactly 1. Leaves the last
    epoch's numbers in ``metrics`` and returns whether an update was skipped (0-d, fp32).
    """
    if batches[0].experience is None:
        return skip
    ppo, every = learner.config.ppo, learner.config.sampler.learn_every
    for _ in range(ppo.epochs - 1):
        losses = []
        for batch in batches:
            with autocast(batch.tokens.device, learner.bf16):
                policy = policy_learning_from(
                    every, learner.sampler, batch.tokens, drawn=batch.policy
                )
            policy = policy_of_draws(policy, batch.split)
            losses.append(sampler_loss(ppo, policy, batch.experience))
            (every * losses[-1].total / len(batches)).backward()
        failed = any_not_finite(learner.world, [loss.total.detach() for loss in losses])
        skip = update_sampler(learner, plan, torch.maximum(skip, failed), metrics)
        for name in ("approx_kl", "clip_frac"):
            # Of the clips whose policy moves: the others have the ratio 1.
            metrics[name] = every * torch.stack([getattr(loss, name) for loss in losses]).mean()
    return skip


def update_sampler(
    learner: Learner, plan: StepPlan, skip: Tensor, metrics: dict[str, Tensor]
) -> Tensor:
    """One update of the sampler from the gradients of all processes."""
    learner.world.average_gradients(learner.sampler.parameters())
    skip, metrics["grad_norm_sampler"] = update(
        learner.sampler_optimizer,
        learner.sampler,
        plan.lr * learner.config.ppo.lr_scale,
        learner.config.optim.grad_clip,
        skip,
    )
    return skip
