"""What a study found: means with standard errors, differences paired by seed, pictures, a page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from parts import bench
from parts.study.spec import CONTROLS, Study

BASELINE = "random"
TOGETHER = "study.json"
"""All cells of a report."""
NOT_MEASURES = ("step", "min_prob", "visible_prob_max", "content_dependence")
Records = dict[str, dict[str, Any]]


class Estimate(NamedTuple):
    """A mean over seeds, its standard error (nan for one seed) and the number of seeds."""

    mean: float
    error: float
    seeds: int

    def text(self, digits: int = 1, sign: str = "") -> str:
        """``61.2 ± 1.4``."""
        spread = "" if math.isnan(self.error) else f" ± {self.error:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{spread}"


def estimate(values: list[float]) -> Estimate:
    """Mean and standard error s / sqrt(n)."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(mean(values), error, len(values))


def values_of(record: dict[str, Any]) -> dict[str, float]:
    """All that was measured of a cell at its end."""
    last = record["curve"][-1] if record.get("curve") else {}
    named = {k: v for k, v in last.items() if k not in NOT_MEASURES}
    tuned = {k: v for k, v in record.items() if "_tuned" in k or k == "supervised"}
    return {**named, **tuned}


def groups(records: Records) -> dict[tuple, dict[str, dict[int, dict[str, float]]]]:
    """By (data, ratio, budget), strategy and seed."""
    found: dict[tuple, dict[str, dict[int, dict[str, float]]]] = {}
    for record in records.values():
        place = record["data"], record["ratio"], record["budget"]
        by_strategy = found.setdefault(place, {}).setdefault(record["strategy"], {})
        by_strategy[record["seed"]] = values_of(record)
    return found


def paired(
    ours: dict[int, dict[str, float]], theirs: dict[int, dict[str, float]], measure: str
) -> Estimate | None:
    """The difference at equal seeds; None where no seed has both."""
    both = [
        ours[seed][measure] - theirs[seed][measure]
        for seed in ours.keys() & theirs.keys()
        if measure in ours[seed] and measure in theirs[seed]
    ]
    return estimate(both) if both else None


def tables(study: Study, records: Records, baseline: str = BASELINE) -> str:
    """One table per data, ratio and budget, with differences to the strategy ``baseline``."""
    parts = []
    found = groups(records)
    for (data, ratio, budget), rows in found.items():
        controls = found.get((data, study.data[data].get("ratios", study.ratios)[0], "steps"), {})
        rows = {**{k: v for k, v in controls.items() if k in CONTROLS}, **rows}
        theirs = rows.get(baseline) or found.get((data, ratio, "steps"), {}).get(baseline, {})
        measures = _measures(rows)
        seeds = max(len(by_seed) for by_seed in rows.values())
        cells = []
        for strategy in sorted(rows, key=list(study.strategies).index):
            row = [strategy]
            for name in measures:
                values = [v[name] for v in rows[strategy].values() if name in v]
                digits = 3 if name in ("loss", "entropy_frac", "frame_spread") else 1
                digits = 2 if name.endswith("lift") else digits
                text = estimate(values).text(digits) if values else "-"
                if 0 < len(values) < seeds:
                    text += f" of {len(values)}"
                difference = paired(rows[strategy], theirs, name)
                if difference is not None and strategy != baseline and _is_score(name):
                    text += f" ({difference.text(digits, '+')})"
                row.append(text)
            cells.append(row)
        title = f"### {data}, ratio {ratio:g}, equal {budget} ({seeds} seeds)"
        parts.append(f"{title}\n\n{bench.markdown(['strategy', *measures], cells)}")
    return "\n\n".join(parts)


def _measures(rows: dict[str, dict[int, dict[str, float]]]) -> list[str]:
    names: dict[str, None] = {}
    for by_seed in rows.values():
        for values in by_seed.values():
            names |= dict.fromkeys(values)
    return sorted(names, key=lambda name: (not _is_score(name), list(names).index(name)))


def _is_score(name: str) -> bool:
    return name.endswith(("_linear", "_linear_bn", "_knn", "_attentive")) or "_tuned" in name


def write(study: Study, records: Records, out: Path, baseline: str = BASELINE) -> int:
    """``study.json`` (every cell), ``index.md`` and its pictures; prints the tables."""
    if not records:
        print("no cell is finished yet")
        return 0
    text = tables(study, records, baseline)
    print(text)
    others = {key: value for key, value in stored(out).items() if key not in records}
    bench.replace_json(out / TOGETHER, {"name": study.name, "cells": others | records})
    if others:
        print(
            f"\n{len(others)} cells of {out / TOGETHER} are not those asked for here, and not in "
            f"the tables: {', '.join(others)}"
        )
    pictures = draw(study, records, out) if bench.installed("matplotlib") else []
    about = (
        f"# Study {study.name}\n\nMeans over seeds ± standard error; in brackets the difference to "
        f"`{baseline}`, paired by seed; `of n`: so many seeds have it. Probes and fine-tuning in "
        "percent, lifts over chance.\n\n"
    )
    images = "\n\n".join(f"![{path.stem}]({path.name})" for path in pictures)
    (out / "index.md").write_text(f"{about}{text}\n\n{images}\n")
    print(f"\nlook at {out / 'index.md'}")
    return 0


def stored(out: Path) -> Records:
    """The cells that reports in this folder have put together."""
    together = out / TOGETHER
    return json.loads(together.read_text())["cells"] if together.exists() else {}


COLUMNS = 4
Fill = Callable[[Any, Study, Records, tuple, str], None]


def draw(study: Study, records: Records, out: Path) -> list[Path]:
    """Scores by strategy with their standard errors, and scores over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    return [
        _draw(out / "scores.png", study, records, _bars),
        _draw(out / "curves.png", study, records, _lines),
    ]


def _draw(path: Path, study: Study, records: Records, fill: Fill) -> Path:
    from matplotlib import pyplot

    panels = []
    for place, rows in groups(records).items():
        scores = [name for name in _measures(rows) if _is_score(name)] or ["loss"]
        panels += [(place, score) for score in scores]
    rows = -(-len(panels) // COLUMNS)
    size = (4 * min(COLUMNS, len(panels)), 3 * rows)
    figure, axes = pyplot.subplots(rows, min(COLUMNS, len(panels)), figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (place, score) in zip(axes.flat, panels, strict=False):
        fill(axis, study, records, place, score)
        axis.set_title(f"{score}\n{place[0]}, ratio {place[1]:g}, equal {place[2]}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def chance_of(records: Records, score: str) -> float | None:
    """What the most frequent class gives where ``score`` is asked; None if no record says so."""
    name = score.rpartition("_")[0].removesuffix("_linear")
    known = (record["chance"] for record in records.values() if "chance" in record)
    return next((chance[name] for chance in known if name in chance), None)


def _percent(records: Records, score: str, line: Callable[..., Any]) -> str:
    """The name of an axis of accuracies, on which ``line`` marks one answer for all."""
    value = chance_of(records, score)
    if value is None:
        return "accuracy, %"
    line(value, color="0.4", linestyle="--", linewidth=0.8)
    return "accuracy, %; dashed: most frequent class"


def _bars(axis: Any, study: Study, records: Records, place: tuple, score: str) -> None:
    rows = groups(records)[place]
    found = [
        (name, estimate(values))
        for name in study.strategies
        if (values := [v[score] for v in rows.get(name, {}).values() if score in v])
    ]
    for position, (_, value) in enumerate(found):
        error = 0 if math.isnan(value.error) else value.error
        axis.barh(position, value.mean, xerr=error, color=f"C{position % 10}", alpha=0.8)
    axis.set_yticks(range(len(found)), [name for name, _ in found])
    axis.invert_yaxis()
    if _is_score(score):  # the whole scale: differences of a point must look like one
        axis.set_xlim(0, 100)
        axis.set_xlabel(_percent(records, score, axis.axvline), fontsize=7)


def _lines(axis: Any, study: Study, records: Records, place: tuple, score: str) -> None:
    """The mean over seeds at every evaluation."""
    for number, strategy in enumerate(study.strategies):
        curves = [
            {entry["step"]: entry[score] for entry in record["curve"] if score in entry}
            for record in records.values()
            if (record["data"], record["ratio"], record["budget"]) == place
            and record["strategy"] == strategy
            and record.get("curve")
        ]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if steps:
            means = [mean(curve[step] for curve in curves) for step in steps]
            axis.plot(steps, means, marker="o", ms=3, color=f"C{number % 10}", label=strategy)
    axis.set_xlabel("steps", fontsize=7)
    if _is_score(score):
        axis.set_ylim(0, 100)
        axis.set_ylabel(_percent(records, score, axis.axhline), fontsize=7)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=6)
