"""Charts of the benchmark records; ``--plot`` of the scripts, or later from a record's JSON:

    python benchmarks/plots.py ops.json ops.png

matplotlib is optional and imported where it draws.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from parts import bench

from tats_fast.config import ConfigError

COLOURS = {
    "reference": "#9aa5b1",
    "sdpa": "#c9a227",
    "torch": "#1f6fd0",
    "compiled": "#1d8a52",
    "fast": "#c45d00",
    "fast_eager": "#e0a377",
    "fast_graph": "#8a3f00",
    "fast_eager_graph": "#b98a64",
    "triton": "#c45d00",
    "triton_compiled": "#9440ad",
    "pyav": "#1f6fd0",
    "dali": "#1d8a52",
    "dali-gpu": "#c45d00",
    "decord": "#9aa5b1",
    "torchcodec": "#9440ad",
}
STAGE_COLOURS = (
    *("#d5dae0", "#b7c3d0", "#8fb8de", "#c45d00", "#c9a227", "#1f6fd0", "#6cabff", "#9aa5b1"),
    *("#1d8a52", "#9440ad", "#f0b27a", "#e6e9ed"),
)
WAIT_COLOUR, STEP_COLOUR = "#c45d00", "#b7c3d0"
NOTE = {"padding": 4, "fontsize": 8}
"""Text beside a bar's end."""
LEGEND_ABOVE = {"loc": "lower right", "bbox_to_anchor": (1, 1.01), "borderaxespad": 0}
INK, SOFT, GRID = "#1b1f24", "#59636e", "#e3e7eb"
STYLE = {
    "font.size": 10,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.dpi": 150,
}


def save(record: dict[str, Any], options: Any) -> None:
    """Write ``record`` to ``options.json`` and draw it to ``options.plot``, where these are set."""
    if options.json:
        bench.write_json(options.json, record)
    if options.plot:
        draw(record, options.plot)


def draw(record: dict[str, Any], path: str) -> None:
    """Draw a record of ops.py, decode.py or throughput.py as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chart = next((CHARTS[key] for key in CHARTS if key in record), _draw_throughput)
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(layout="constrained")
        chart(figure, record)
        figure.savefig(path)
        pyplot.close(figure)


def _title(axes: Any, title: str, record: dict[str, Any], *facts: str) -> None:
    """A title, and below it what was measured where; it may run on above the next panel."""
    machine = record["hardware"]
    cpu = f"{machine['cpu']}, {machine['cpu_cores']} cores"
    place = f"{machine.get('gpu', cpu)}, torch {record['versions']['torch']}"
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=24)
    text = "; ".join([place, *facts])
    look = {"color": SOFT, "fontsize": 8.5, "va": "bottom", "in_layout": False}
    axes.text(0, 1.02, text, transform=axes.transAxes, **look)


def _name_rows(axes: Any, places: Collection[float], names: Collection[str], margin: float) -> None:
    """Name horizontal bars, the first on top, and leave room for notes on the right."""
    axes.set_yticks(list(places), [name.replace(", ", "\n") for name in names], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=margin)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _draw_ops(figure: Any, record: dict[str, Any]) -> None:
    """Speed-up over the reference, forward + backward, of each op in its first case.

    The marks are where it would be if the counted bytes and FLOP took what a large copy and product
    took in the same run. A library's other products may be faster: then a bar passes its mark.
    """
    figure.set_size_inches(10.5, 4.6)
    axes, config = figure.subplots(), record["config"]
    rows = {op: next(iter(cases.items())) for op, cases in record["ops"].items() if cases}
    ran = [entries for _, entries in rows.values()]
    medians = {
        name: np.array([e.get(name, {}).get("fwd_bwd_ms", {"p50": np.nan})["p50"] for e in ran])
        for name in config["implementations"]
    }
    reference = medians.pop("reference")
    medians = {name: ms for name, ms in medians.items() if not np.isnan(ms).all()}
    places, width = np.arange(len(rows)), 0.8 / max(1, len(medians))
    for index, (name, ms) in enumerate(medians.items()):
        left, gains = places + (index - (len(medians) - 1) / 2) * width, reference / ms
        look = {"color": COLOURS[name], "label": name}
        bars = axes.bar(left, gains - 1, 0.92 * width, bottom=1, **look)
        axes.bar_label(bars, [f"{gain:.1f}" for gain in gains], **NOTE)
    floors = [record["floors"][op][case] for op, (case, _) in rows.items()]
    best = reference / [floor["fwd_ms"] + floor["bwd_ms"] for floor in floors]
    look = {"color": INK, "linewidth": 1.6, "label": "at measured rates"}
    axes.hlines(best, places - 0.42, places + 0.42, **look)
    axes.axhline(1, color=SOFT, linewidth=1)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.6), high * 1.25)
    labels = [
        op.replace("_", "\n", 1) + (f"\n{ms:,.0f} ms" if ms >= 10 else f"\n{ms:.2g} ms")
        for op, ms in zip(rows, reference, strict=True)
    ]
    axes.set_xticks(places, labels, fontsize=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} x")
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("speed-up over the reference (its time below)")
    axes.legend(ncols=5, **LEGEND_ABOVE)
    case = next(iter(rows.values()))[0] if rows else "-"
    shape = f"{case}, batch {config['batch']}, {config['dtype']}"
    _title(axes, "Hot ops, forward + backward", record, shape)


def _draw_throughput(figure: Any, record: dict[str, Any]) -> None:
    """Where each path's step goes; with several batch sizes, clips/s over batch size beside it.

    Bars are as long as the timed step. Stages were timed in other steps, which wait between them,
    so they show how the step is divided, not how long it is.
    """
    config, batches = record["config"], record.get("batches", {})
    sweep = len(batches) > 2  # two points make no curve
    figure.set_size_inches(11 if sweep else 9.5, 3.9)
    *left_panel, bars = figure.subplots(1, 1 + sweep, squeeze=False)[0]
    paths = {name: p for name, p in record["paths"].items() if "step_ms" in p}
    left = np.zeros(len(paths))
    stages = max((path["stages_ms"] for path in paths.values()), key=len)
    for stage, colour in zip(stages, STAGE_COLOURS, strict=False):
        took = np.array([_of_timed_step(path, stage) for path in paths.values()])
        look = {"color": colour, "label": stage.replace("_", " ") if took.any() else None}
        bars.barh(range(len(paths)), took, 0.62, left, **look)
        left = left + took
    # Others' code has no stages.
    whole = [0 if path["stages_ms"] else path["step_ms"]["p50"] for path in paths.values()]
    look = {"color": STEP_COLOUR, "label": "not divided" if any(whole) else None}
    drawn = bars.barh(range(len(paths)), whole, 0.62, left, **look)
    rates = [path["clips_per_s"] for path in paths.values()]
    bars.bar_label(drawn, [f"{rate:,.{1 if rate >= 10 else 3}f} clips/s" for rate in rates], **NOTE)
    _name_rows(bars, range(len(paths)), paths, 0.3 if sweep else 0.14)
    bars.set_xlabel(f"ms per step, batch {config['batch']}")
    bars.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in left_panel:
        _draw_sweep(axes, batches)
    tokens = f"{config['visible']} of {config['tokens']} tokens visible"
    how = f"{config['precision']}, {tokens}, K={config['inner_epochs']}"
    title = f"Training step, {config['run']['model']['preset']}"
    _title(left_panel[0] if sweep else bars, title, record, how)


def _of_timed_step(path: dict[str, Any], stage: str) -> float:
    """A stage's share of the median step, ms."""
    stages = path["stages_ms"]
    total = sum(ms or 0.0 for ms in stages.values())
    return (stages.get(stage) or 0.0) / total * path["step_ms"]["p50"] if total else 0.0


def _draw_sweep(axes: Any, batches: dict[str, Any]) -> None:
    names = dict.fromkeys(name for entry in batches.values() for name in entry["paths"])
    for name in names:
        points = [
            (int(batch), entry["paths"][name]["clips_per_s"])
            for batch, entry in batches.items()
            if "clips_per_s" in entry["paths"].get(name, {})
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS.get(name), label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(batch) for batch in batches], list(batches))
    axes.minorticks_off()
    axes.set(ylim=(0, None), xlabel="clips per step", ylabel="clips/s")
    axes.legend()


def _draw_decoding(figure: Any, record: dict[str, Any]) -> None:
    """Clips/s and CPU time per clip by files and backend; with training, what a clip waits for."""
    config, trained = record["config"], record.get("training", {})
    figure.set_size_inches(13.5 if trained else 10.5, 5.4)
    rates, costs, *waiting = figure.subplots(1, 3 if trained else 2)
    cases = record["decoding"]
    timed: dict[str, dict[float, dict[str, Any]]] = {}  # by backend and place
    place, ticks = 0.0, []
    for entries in cases.values():
        names = [name for name, entry in entries.items() if "refused" not in entry]
        ticks.append(place + (len(names) - 1) / 2)
        for name in names:
            timed.setdefault(name, {})[place] = entries[name]
            place += 1
        place += 0.7
    for key, digits, axes in (("clips_per_s", 1, rates), ("cpu_ms_per_clip", 0, costs)):
        for name, rows in timed.items():
            p20, p50, p80 = np.array([list(row[key].values()) for row in rows.values()]).T
            look = {"color": COLOURS[name], "ecolor": SOFT, "label": name}
            bars = axes.barh(list(rows), p50, 0.85, xerr=(p50 - p20, p80 - p50), **look)
            axes.bar_label(bars, [f"{value:.{digits}f}" for value in p50], **NOTE)
        _name_rows(axes, ticks, cases, 0.12)
    rates.set_xlabel(f"clips/s, {config['workers']} processes (more is better)")
    costs.set(xlabel="CPU ms per clip, all processes (less is better)", yticklabels=[])
    costs.legend(ncols=3, **LEGEND_ABOVE)
    for axes in waiting:
        _draw_waiting(axes, trained)
    shape = f"{config['frames']} x {config['size']} x {config['size']}"
    _title(rates, "Loading clips", record, shape, "bars p50, lines p20 to p80")


def _draw_waiting(axes: Any, trained: dict[str, Any]) -> None:
    rows, places = trained.values(), range(len(trained))
    wait = [row["wait_ms_per_clip"] for row in rows]
    axes.barh(places, wait, 0.7, color=WAIT_COLOUR, label="waiting")
    step = [row["step_ms_per_clip"] for row in rows]
    bars = axes.barh(places, step, 0.7, wait, color=STEP_COLOUR, label="steps")
    notes = [f"{100 * row['data_wait_frac']['p50']:.0f}% waiting" for row in rows]
    axes.bar_label(bars, notes, **NOTE)
    _name_rows(axes, places, trained, 0.3)
    axes.set_xlabel("training, small model: ms per clip")
    axes.legend(ncols=2, **LEGEND_ABOVE)


CHARTS = {"ops": _draw_ops, "decoding": _draw_decoding}
"""By the key that tells a record's script; the rest are those of throughput.py."""


def run(options: Any) -> int:
    """Draw a record that was written earlier."""
    bench.check_chart("image", options.image)
    try:
        draw(json.loads(Path(options.record).read_text()), options.image)
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{options.record}: no record of ops.py, throughput.py or decode.py ({error!r})"
        raise ConfigError(text) from None
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 drawn; 2 wrong use."""
    parser = bench.Parser(__doc__)
    parser.add_argument("record", help="JSON of ops.py, throughput.py or decode.py")
    parser.add_argument("image", help="PNG to write")
    return bench.run_script(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
