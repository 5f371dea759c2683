"""Is a run healthy? Its curves over those of a reference: a line of text each, and a picture.

The verdict is about one step, the last that both have reached. A curve's value there is the mean of
its points in the tenth before, so that the noise of single batches does not decide.
"""

from __future__ import annotations

import math
from statistics import mean, stdev
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tats_fast.report.curves import Points, short
from tats_fast.report.reference import KINDS, Kind, Reference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T_95 = (
    *(12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23),
    *(2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09),
)
"""97.5% points of Student's t with 1 to 20 degrees of freedom."""
COLUMNS = 3
YOURS, THEIRS = "#c45d00", "#1f6fd0"


class Comparison(NamedTuple):
    """One curve at the last common step."""

    name: str
    step: float
    yours: float
    theirs: list[float]
    """Of every run of the reference."""

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]


def compare(run: Reference, reference: Reference) -> list[Comparison]:
    """Every curve that both have and whose steps overlap; ``run`` is of one run."""
    found = []
    for name, (yours,) in run.curves.items():
        theirs = reference.curves.get(name, [])
        step = min([yours[-1][0], *(points[-1][0] for points in theirs)])
        begin = max([yours[0][0], *(points[0][0] for points in theirs)])
        if theirs and begin <= step:
            values = [value_at(points, step) for points in theirs]
            found.append(Comparison(name, step, value_at(yours, step), values))
    return found


def value_at(points: Points, step: float) -> float:
    """Mean of the values in the last tenth of the steps up to ``step``; where there are none, the
    value between the neighbours."""
    recent = [value for at, value in points if 0.9 * step < at <= step]
    if recent:
        return mean(recent)
    return float(np.interp(step, *zip(*points, strict=True)))


def verdict(comparison: Comparison) -> str:
    """Whether another seed of the reference would explain the difference.

    With R runs of mean m and deviation s a further one lies in m +- t s sqrt(1 + 1/R) in 19 of 20
    cases, if values spread like a normal distribution.
    """
    yours, theirs = comparison.yours, comparison.theirs
    low, high, runs = min(theirs), max(theirs), len(theirs)
    ends = short(low), short(high)
    if runs > 1 and (low <= yours <= high or short(yours) in ends):  # as far as it is shown
        return "within the spread of the reference's seeds"
    if yours == low == high:
        return "equal to the reference"
    distance = yours - high if yours > high else yours - low
    side = "above" if distance > 0 else "below"
    good = {"lower": "below", "higher": "above"}.get(comparison.kind.better)
    judged = "" if good is None else " (better)" if side == good else " (worse)"
    text = f"{side} it by {short(abs(distance))}{judged}"
    if runs == 1:
        return f"{text}; one seed tells no spread"
    reach = T_95[min(runs - 2, len(T_95) - 1)] * stdev(theirs) * math.sqrt(1 + 1 / runs)
    if abs(yours - mean(theirs)) <= reach:
        return f"{text}, as another seed may be"
    return f"{text}, more than another seed explains"


def lines(comparisons: list[Comparison]) -> list[str]:
    """A line of text per curve: values at the last common step, their ratio, the verdict."""
    text = []
    for comparison in comparisons:
        theirs = comparison.theirs
        middle = mean(theirs)
        spread = f" ({short(min(theirs))} to {short(max(theirs))})" if len(theirs) > 1 else ""
        ratio = f"{comparison.yours / middle:.2f}" if middle else "-"
        text.append(
            f"{comparison.kind.title}, step {comparison.step:g}: {short(comparison.yours)}, "
            f"reference {short(middle)}{spread}, ratio {ratio}: {verdict(comparison)}"
        )
    return text


def comparison_figure(reference: Reference, run: Reference | None = None) -> Figure:
    """A chart per curve of the reference: its runs, the span between them, and ``run`` on top."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(reference.curves) / COLUMNS)
    figure = Figure((4 * COLUMNS, 2.7 * rows + 0.5), dpi=100, layout="constrained")
    for number, (name, runs) in enumerate(reference.curves.items()):
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        axes.set_title(KINDS[name].title, fontsize=11)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for points in runs:
            axes.plot(*zip(*points, strict=True), color=THEIRS, linewidth=1, alpha=0.6)
        steps = sorted({step for points in runs for step, _ in points})
        each = [np.interp(steps, *zip(*points, strict=True)) for points in runs]
        axes.fill_between(steps, np.min(each, 0), np.max(each, 0), color=THEIRS, alpha=0.2)
        if run is not None and name in run.curves:
            (points,) = run.curves[name]
            axes.plot(*zip(*points, strict=True), color=YOURS, linewidth=1.8)
    seeds = f"reference, {len(reference.seeds)} seed{'s' * (len(reference.seeds) > 1)} (blue)"
    figure.suptitle(seeds if run is None else f"this run (orange) over the {seeds}", fontsize=12)
    return figure
