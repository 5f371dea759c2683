"""The words and numbers of the page: explanation, headline numbers, curves.

Every number's definition is one sentence for a reader who has not read the paper.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tats_fast.config import RunConfig
from tats_fast.config.schema import LEARNED_STRATEGIES
from tats_fast.masking import visible_tokens
from tats_fast.report.curves import Chart, Points, is_number, series

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
    method = "PPO (reinforcement learning)" if strategy == "tats" else "AdaMAE’s loss"
    return text + (
        f"A second, small network, the sampler, learns with {method} which blocks to leave "
        f"visible, {aim}. This page shows what both have learnt, beside blocks chosen at random "
        "and blocks chosen by how much they change between frames (“motion”)."
    )


HEADLINES = (
    (
        "loss_recon_random",
        "Held-out error",
        True,
        "Squared error of hidden tokens under one fixed random mask, on clips not trained on. 1.0 "
        "= painting each token in its own mean colour; lower is better.",
    ),
    (
        "entropy_frac",
        "Sampler entropy",
        False,
        "How evenly the sampler spreads its probability: 1.0 = uniform, as by chance; 0 = always "
        "one and the same token.",
    ),
    (
        "motion_lift_sampler",
        "Motion lift, sampler",
        False,
        "Motion of the tokens the sampler shows, over the clip’s average token. 1.0 = no more "
        "motion than chance.",
    ),
    (
        "motion_lift_random",
        "Motion lift, random",
        False,
        "The same for tokens drawn at random: 1.0 up to the luck of the draws.",
    ),
    (
        "motion_lift_motion",
        "Motion lift, motion",
        False,
        "The same for tokens drawn in proportion to their motion: what looking at motion alone "
        "would give.",
    ),
)


def headlines(evaluations: Rows) -> list[Headline]:
    """Those of the headline numbers that were measured, from the first and last evaluation."""
    found = []
    for key, name, percent, meaning in HEADLINES:
        points = series(evaluations, key)
        if points:
            (first_step, first), (last_step, last) = points[0], points[-1]
            steps = (int(first_step), int(last_step))
            found.append(Headline(name, first, last, steps, percent, meaning))
    return found


MAIN_CHARTS = (
    *("Held-out error", "Training error", "Entropy of the sampler", "Motion lift", "Texture lift"),
    "Explained variance of the critic",
)
"""Titles of the charts that are open on the page; the others are folded away."""


def charts(metrics: Rows, evaluations: Rows) -> list[Chart]:
    """All curves of a run; a chart without two points of any line is left out by its drawing."""

    def lift(key: str) -> dict[str, Points]:
        held_out = {
            name: series(evaluations, f"{key}_{name}") for name in ("sampler", "motion", "random")
        }
        return {"training draws": series(metrics, key), **held_out}

    def pair(key: str) -> dict[str, Points]:
        return {"training": series(metrics, key), "held-out": series(evaluations, key)}

    def train(*keys: str) -> dict[str, Points]:
        return {key: series(metrics, key) for key in keys}

    specs: list[tuple[str, str, dict[str, Points], float | None]] = [
        (
            "Held-out error",
            "Under one fixed random mask, so it measures the autoencoder alone. 1.0 = painting "
            "each token in its own mean colour.",
            {"held-out": series(evaluations, "loss_recon_random")},
            1.0,
        ),
        (
            "Training error",
            "On the masks of training, so it also moves when these get harder or easier; 1.0 as "
            "before.",
            train("loss_recon"),
            1.0,
        ),
        ("Entropy of the sampler", "1.0 = uniform.", pair("entropy_frac"), 1.0),
        ("Motion lift", "1.0 = as much motion as a random draw.", lift("motion_lift"), 1.0),
        (
            "Texture lift",
            "The same for spatial detail: a sampler that follows texture instead of motion shows "
            "here.",
            lift("roughness_lift"),
            1.0,
        ),
        (
            "Explained variance of the critic",
            "1.0 = the critic foresees the reward of every clip; 0 = no better than its mean.",
            train("explained_variance"),
            0.0,
        ),
        (
            "Content dependence",
            "0 = the same probabilities for every clip; higher = the sampler looks at the clip.",
            pair("content_dependence"),
            None,
        ),
        (
            "Spread over time",
            "1.0 = visible tokens evenly over the frames.",
            train("frame_spread"),
            None,
        ),
        (
            "Largest token probability",
            "Mean over clips; 1.0 would be certainty.",
            pair("visible_prob_max"),
            None,
        ),
        (
            "Smallest token probability",
            "Times the number of tokens: 1.0 = chance.",
            pair("min_prob"),
            None,
        ),
        (
            "PPO update size",
            "KL divergence from the drawing policy, and the share of clipped ratios.",
            train("approx_kl", "clip_frac"),
            None,
        ),
        ("Policy loss", "", train("loss_policy"), None),
        ("Value loss", "", train("loss_value"), None),
        ("Learning rate", "", train("lr"), None),
        ("Mask ratio", "Share of hidden tokens.", train("mask_ratio"), None),
        ("Speed", "Clips per second.", train("clips_per_s"), None),
        (
            "Waiting for data",
            "Share of the time spent waiting for clips.",
            train("data_wait_frac"),
            None,
        ),
        ("Peak memory", "MB.", train("peak_mem_mb"), None),
    ]
    return [
        Chart(title=title, caption=caption, lines=_told(lines), reference=reference)
        for title, caption, lines, reference in specs
        if title != "Mask ratio" or _moves(lines)
    ]


def _told(lines: dict[str, Points]) -> dict[str, Points]:
    return {label: points for label, points in lines.items() if points}


def _moves(lines: dict[str, Points]) -> bool:
    return any(len({value for _, value in points}) > 1 for points in lines.values())


def warmup_end(metrics: Rows) -> int | None:
    """Step of the last logged row whose masks were random because the sampler still rested."""
    steps = [
        row["step"]
        for row in metrics
        if "warm-up" in str(row.get("strategy")) and is_number(row.get("step"))
    ]
    return int(steps[-1]) if steps else None
