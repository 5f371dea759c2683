"""The best checkpoint of a run by its own evaluations."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tats_fast.run_folder import STEP_PREFIX, is_number, list_checkpoints, read_rows

MEASURES = {"top1": max, "loss_recon_random": min}
"""What of a line of ``eval.jsonl`` is compared: accuracy of fine-tuning, held-out loss under the
fixed random mask of pretraining."""


class Best(NamedTuple):
    """A checkpoint, and the measure by which none is better."""

    checkpoint: Path
    measure: str
    value: float


def best_checkpoint(run_dir: Path) -> Best | None:
    """Of those that are there and were evaluated; the earliest of equals, None without any.

    Accuracies are compared at one number of views: that of most evaluations, which leaves out the
    last one of a fine-tuning run.
    """
    groups: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for row in read_rows(run_dir / "eval.jsonl"):
        for measure in MEASURES:
            if is_number(value := row.get(measure)):
                groups[measure, row.get("views", 0)][row["step"]] = float(value)
    if not groups:
        return None
    (measure, _), values = max(groups.items(), key=lambda group: len(group[1]))
    there = {int(path.name[len(STEP_PREFIX) :]): path for path in list_checkpoints(run_dir)}
    evaluated = {step: values[step] for step in sorted(values) if step in there}
    if not evaluated:
        return None
    step = MEASURES[measure](evaluated, key=evaluated.__getitem__)
    return Best(there[step], measure, evaluated[step])
