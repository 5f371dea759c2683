"""The words and numbers of the page: explanation, headline numbers, curves.

Every number's definition is one sentence for a reader who has not read the paper.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tats_fast.config import RunConfig
from tats_fast.config.schema import CHANGE_REWARDS, LEARNED_STRATEGIES
from tats_fast.masking import visible_tokens
from tats_fast.report.curves import Chart, Points, series

Rows = list[dict[str, Any]]


class Headline(NamedTuple):
    """A number at the run's first and last evaluation (the same where there was only one)."""

    name: str
    first: float
    last: float
    steps: tuple[int, int]
    percent: bool  # whether the relative change is worth saying
    meaning: str


def explanation(config: RunConfig) -> str:
    """What this run does, in plain words."""
    model, strategy = config.model, config.masking.strategy
    visible = visible_tokens(strategy, model, config.masking.ratio)
    share = 100 * (1 - visible / model.num_tokens)
    text = (
        f"A clip of {model.num_frames} frames is cut into {model.num_tokens} blocks (“tokens”) of "
        f"{model.patch_size} × {model.patch_size} pixels and {model.tubelet_size} frames. "
        f"{share:.0f}% of them are hidden; a neural network sees the other {visible} and learns to "
        "paint the hidden ones. "
    )
    if strategy not in LEARNED_STRATEGIES:
        return text + f"In this run the visible blocks are chosen by a fixed rule: {strategy}."
    aim = (
        "such that the hidden blocks can be painted well"
        if strategy == "tats" and config.ppo.credit == "set"
        else "preferring those that are hard to paint when hidden"
    )
    if config.ppo.reward == "error_motion" and strategy == "tats":
        aim += ", the more so where things move"
    elif config.ppo.reward in CHANGE_REWARDS and strategy == "tats":
        aim = (
            "such that it can be foreseen how the hidden blocks change"
            if config.ppo.credit == "set"
            else "preferring those of which it is hard to foresee how they change"
        )
    method = "PPO (reinforcement learning)" if strategy == "tats" else "AdaMAE’s loss"
    return text + (
        f"A second, small network, the sampler, learns with {method} which blocks to leave "
        f"visible, {aim}. This page shows what both have learnt, next to blocks chosen at random "
        "and blocks chosen by how much they change between frames (“motion”)."
    )


HEADLINES = {
    "loss_recon_random": (
        "Held-out error",
        "Squared error of hidden tokens under one fixed random mask, on clips not trained on. 1.0 "
        "= painting each token in its own mean colour; lower is better.",
    ),
    "entropy_frac": (
        "Sampler entropy",
        "How evenly the sampler spreads its probability: 1.0 = uniform, as by chance; 0 = always "
        "one and the same token.",
    ),
    "motion_lift_sampler": (
        "Motion lift, sampler",
        "Mean motion of the tokens that the sampler leaves visible, relative to all tokens of the "
        "clip. 1.0 = no more motion than chance.",
    ),
    "motion_lift_random": (
        "Motion lift, random",
        "The same for tokens drawn at random: 1.0 up to the luck of the draws.",
    ),
    "motion_lift_motion": (
        "Motion lift, motion",
        "The same for tokens drawn in proportion to their motion: what looking at motion alone "
        "would give.",
    ),
    "true_motion_lift_sampler": (
        "True motion, sampler",
        "On generated clips, where it is known what moves: the moving share of the tokens that the "
        "sampler leaves visible, relative to all tokens. 1.0 = chance.",
    ),
    "true_motion_lift_motion": (
        "True motion, frame difference",
        "The same for tokens drawn in proportion to their change between frames, without learning.",
    ),
}


def headlines(evaluations: Rows) -> list[Headline]:
    """The headline numbers that were measured, from the first and last evaluation."""
    measured = []
    for key, (name, meaning) in HEADLINES.items():
        points = series(evaluations, key)
        if points:
            (first_step, first), (last_step, last) = points[0], points[-1]
            steps = (int(first_step), int(last_step))
            percent = key == "loss_recon_random"
            measured.append(Headline(name, first, last, steps, percent, meaning))
    return measured


MORE_CHARTS = (
    (
        "Content dependence",
        "0 = the same probabilities for every clip; higher = the sampler looks at the clip.",
        "content_dependence",
    ),
    ("Spread over time", "1.0 = visible tokens evenly over the frames.", "frame_spread"),
    ("Largest token probability", "Mean over clips; 1.0 = certainty.", "visible_prob_max"),
    ("Smallest token probability", "Times the number of tokens; 1.0 = chance.", "min_prob"),
    (
        "PPO update size",
        "KL divergence from the drawing policy, and the share of clipped ratios.",
        "approx_kl",
        "clip_frac",
    ),
    ("Policy loss", "", "loss_policy"),
    ("Value loss", "", "loss_value"),
    ("Learning rate", "", "lr", "lr_sampler"),
    ("Gradient norm", "Before clipping.", "grad_norm", "grad_norm_sampler"),
    ("Mask ratio", "Share of hidden tokens.", "mask_ratio"),
    ("Speed", "Clips per second.", "clips_per_s"),
    ("Utilisation", "Model FLOP per second over the device’s peak.", "mfu"),
    (
        "Waiting for data",
        "Share of time spent waiting for clips.",
        "data_wait_frac",
        "data_wait_frac_max",
    ),
    (
        "Waiting for each other",
        "Share of a step spent waiting for gradients of other processes: least and most of all "
        "processes. Far apart, one of them (slowest_rank) holds the others up.",
        "exchange_wait_frac_min",
        "exchange_wait_frac_max",
    ),
    ("Own time", "Seconds per step without that wait.", "busy_s_min", "busy_s_max"),
    ("Peak memory", "MiB.", "peak_mem_mb", "peak_mem_mb_max", "reserved_mem_mb"),
)
"""Title, caption and columns of the charts that are folded away."""
MEASURED_TWICE = ("content_dependence", "visible_prob_max", "min_prob")
"""Columns of both training and evaluation."""


def charts(metrics: Rows, evaluations: Rows) -> tuple[list[Chart], list[Chart]]:
    """The curves that are open on the page, and those that are folded away.

    A chart without two points of any line is left out by its drawing.
    """

    def train(*keys: str) -> dict[str, Points]:
        return {key: series(metrics, key) for key in keys}

    def pair(key: str) -> dict[str, Points]:
        return {"training": series(metrics, key), "held-out": series(evaluations, key)}

    def lift(key: str) -> dict[str, Points]:
        held_out = {name: series(evaluations, f"{key}_{name}") for name in ("sampler", "random")}
        return {"training draws": series(metrics, key), **held_out}

    def unlearned(key: str) -> str:
        """What following frame difference gives: it does not learn, so it is a number and no line,
        beside which the sampler's own gain would look flat."""
        points = series(evaluations, f"{key}_motion")
        return f" The strategy motion has {points[-1][1]:.2f}." if points else ""

    main = [
        Chart(
            "Held-out error",
            "Under one fixed random mask, so it measures the autoencoder alone. 1.0 = painting "
            "each token in its own mean colour.",
            {"held-out": series(evaluations, "loss_recon_random")},
            1.0,
        ),
        Chart(
            "Training error",
            "On the masks of training, so it also moves when these get harder or easier; 1.0 as "
            "before.",
            train("loss_recon"),
            1.0,
        ),
        Chart("Entropy of the sampler", "1.0 = uniform.", pair("entropy_frac"), 1.0),
        Chart(
            "Motion lift",
            f"1.0 = as much motion as a random draw.{unlearned('motion_lift')}",
            lift("motion_lift"),
            1.0,
        ),
        Chart(
            "Lift on true motion",
            "On generated clips, by what truly moves; 1.0 = chance."
            f"{unlearned('true_motion_lift')}",
            {
                name: series(evaluations, f"true_motion_lift_{name}")
                for name in ("sampler", "random")
            },
            1.0,
        ),
        Chart(
            "Texture lift",
            "The same for spatial detail: a sampler that follows texture instead of motion shows "
            f"here.{unlearned('roughness_lift')}",
            lift("roughness_lift"),
            1.0,
        ),
        Chart(
            "Explained variance of the critic",
            "1.0 = the critic foresees the reward of every clip; 0 = no better than its mean.",
            train("explained_variance"),
            0.0,
        ),
    ]
    more = []
    for title, caption, *keys in MORE_CHARTS:
        lines = train(*keys) if keys[0] not in MEASURED_TWICE else pair(keys[0])
        if keys != ["mask_ratio"] or len({value for _, value in lines["mask_ratio"]}) > 1:
            more.append(Chart(title, caption, lines))  # a mask ratio that stays needs no chart
    return main, more


def warmup_end(metrics: Rows) -> int | None:
    """Step of the last logged row whose masks were random because the sampler still rested."""
    steps = [row["step"] for row in metrics if "warm-up" in str(row.get("strategy"))]
    return int(steps[-1]) if steps else None
