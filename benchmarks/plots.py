"""Charts of the benchmark records; ``--plot`` of the scripts, or later from a record's JSON:

    python benchmarks/plots.py ops.json ops.png

matplotlib is optional and imported where it draws.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parts import bench

COLOURS = {
    "reference": "#9aa5b1",
    "sdpa": "#c9a227",
    "torch": "#1f6fd0",
    "compiled": "#1d8a52",
    "fast": "#c45d00",
    "fast_eager": "#e0a377",
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
INK, SOFT, GRID = "#1b1f24", "#59636e", "#e3e7eb"


def plot_problem(path: str) -> str | None:
    """Why a chart cannot be drawn to ``path``; None when it can."""
    if find_spec("matplotlib") is None:
        return "--plot: matplotlib is not installed; pip install matplotlib"
    return None if path.endswith(".png") else f"--plot {path}: must end in .png"


def outputs_problem(json_file: str | None, plot: str | None) -> str | None:
    """Why ``--json`` or ``--plot`` cannot be written; None when they can, or are not asked for."""
    return (
        (plot_problem(plot) if plot else None)
        or bench.check_writable(json_file)
        or bench.check_writable(plot, "--plot")
    )


def _figure(width: float, height: float, columns: int = 1) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        **{"font.size": 10, "axes.edgecolor": SOFT, "axes.labelcolor": INK, "text.color": INK},
        **{"xtick.color": INK, "ytick.color": INK, "axes.spines.top": False},
        **{"axes.spines.right": False, "axes.grid": True, "grid.color": GRID},
        **{"axes.axisbelow": True, "figure.dpi": 150},
    }
    with pyplot.rc_context(style):
        return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")


def _save(figure: Any, path: str) -> None:
    from matplotlib import pyplot

    figure.savefig(path)
    pyplot.close(figure)


def _title(axes: Any, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=24)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, color=SOFT, fontsize=8.5, va="bottom")


def _where(record: dict[str, Any]) -> str:
    found = record["hardware"]
    cpu = f"{found['cpu']}, {found['cpu_cores']} cores"
    return f"{found.get('gpu', cpu)}, torch {record['versions']['torch']}"


def draw_ops(record: dict[str, Any], path: str) -> None:
    """Speed-up over the reference, forward + backward, of each op in its first case, with the
    roofline's as a mark: how far the best possible implementation would be."""
    config = record["config"]
    rows = {op: next(iter(cases.items())) for op, cases in record["ops"].items() if cases}
    names = [
        name
        for name in config["implementations"]
        if name != "reference" and any("fwd_bwd_ms" in e.get(name, {}) for _, e in rows.values())
    ]
    figure, axes = _figure(10.5, 4.6)
    width = 0.8 / max(1, len(names))
    labels = []
    for place, (op, (case, entries)) in enumerate(rows.items()):
        reference = entries["reference"]["fwd_bwd_ms"]["p50"]
        labels.append(f"{op.replace('_', chr(10), 1)}\n{_milliseconds(reference)}")
        for index, name in enumerate(names):
            if "fwd_bwd_ms" not in entries.get(name, {}):
                continue
            gain = reference / entries[name]["fwd_bwd_ms"]["p50"]
            left = place + (index - (len(names) - 1) / 2) * width
            axes.bar(left, gain - 1, 0.92 * width, bottom=1, color=COLOURS[name],
                     label=name if name not in _shown(axes) else None)  # fmt: skip
            offset, side = ((0, 3), "bottom") if gain >= 1 else ((0, -3), "top")
            axes.annotate(f"{gain:.1f}", (left, gain), offset, textcoords="offset points",
                          ha="center", va=side, fontsize=8)  # fmt: skip
        floor = record["floors"][op][case]
        best = reference / (floor["fwd_ms"] + floor["bwd_ms"])
        axes.hlines(best, place - 0.42, place + 0.42, color=INK, linewidth=1.6,
                    label="roofline" if place == 0 else None)  # fmt: skip
    axes.axhline(1, color=SOFT, linewidth=1)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.6), high * 1.25)
    axes.set_xticks(range(len(rows)), labels, fontsize=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} x")
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("speed-up over the reference")
    handles, shown = axes.get_legend_handles_labels()
    order = sorted(range(len(shown)), key=lambda i: shown[i] == "roofline")
    axes.legend(
        [handles[i] for i in order],
        [shown[i] for i in order],
        **{"ncols": 5, "fontsize": 9, "frameon": False, "borderaxespad": 0},
        **{"loc": "lower right", "bbox_to_anchor": (1, 1.0)},
    )
    case = next(iter(rows.values()))[0] if rows else "-"
    subtitle = (
        f"{_where(record)}; {case}, batch {config['batch']}, {config['dtype']}; below each op the "
        "reference's time"
    )
    _title(axes, "Hot ops, forward + backward", subtitle)
    _save(figure, path)


def _shown(axes: Any) -> Sequence[str]:
    return axes.get_legend_handles_labels()[1]


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2g} ms"


def draw_throughput(record: dict[str, Any], path: str) -> None:
    """Where each path's step goes; with several batch sizes, clips/s over batch size beside it."""
    config, batches = record["config"], record.get("batches", {})
    sweep = len(batches) > 1
    figure, axes = _figure(11 if sweep else 9.5, 3.9, 2 if sweep else 1)
    bars = axes[1] if sweep else axes
    paths = {name: p for name, p in record["paths"].items() if "step_ms" in p}
    for place, entry in enumerate(paths.values()):
        left = 0.0
        for stage, colour in zip(entry["stages_ms"], STAGE_COLOURS, strict=True):
            took = entry["stages_ms"].get(stage) or 0.0
            bars.barh(place, took, 0.62, left=left, color=colour,
                      label=stage.replace("_", " ") if place == 0 and took else None)  # fmt: skip
            left += took
        text = f"{entry['clips_per_s']:,.{1 if entry['clips_per_s'] >= 10 else 3}f} clips/s"
        bars.annotate(text, (left, place), (5, 0), textcoords="offset points", va="center",
                      fontsize=9)  # fmt: skip
    bars.set_yticks(range(len(paths)), list(paths))
    bars.invert_yaxis()
    bars.margins(x=0.3 if sweep else 0.14)
    bars.grid(axis="y", visible=False)
    bars.set_xlabel(f"ms per step, batch {config['batch']}")
    bars.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    if sweep:
        _draw_sweep(axes[0], batches)
    run = config["run"]
    _title(
        axes[0] if sweep else bars,
        f"Training step, {run['model']['preset']}",
        f"{_where(record)}; {config['precision']}, {config['visible']} of {config['tokens']} "
        f"tokens visible, K={config['inner_epochs']}",
    )
    _save(figure, path)


def _draw_sweep(axes: Any, batches: dict[str, Any]) -> None:
    names = dict.fromkeys(name for entry in batches.values() for name in entry["paths"])
    for name in names:
        points = [
            (int(batch), entry["paths"][name]["clips_per_s"])
            for batch, entry in batches.items()
            if "clips_per_s" in entry["paths"].get(name, {})
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], label=name)
    sizes = [int(batch) for batch in batches]
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clips per step")
    axes.set_ylabel("clips/s")
    axes.legend(fontsize=9, frameon=False)


def draw_decoding(record: dict[str, Any], path: str) -> None:
    """Clips/s and CPU time per clip by files and backend; with training, what a clip waits for."""
    trained = record.get("training", {})
    figure, axes = _figure(13.5 if trained else 10.5, 5.4, 3 if trained else 2)
    cases = record["decoding"]
    for key, panel in zip(("clips_per_s", "cpu_ms_per_clip"), axes, strict=False):
        place, ticks = 0.0, []
        for rows in cases.values():
            timed = {name: row[key] for name, row in rows.items() if "refused" not in row}
            ticks.append(place + (len(timed) - 1) / 2)
            for name, value in timed.items():
                spread = [[value["p50"] - value["p20"]], [value["p80"] - value["p50"]]]
                label = name if name not in _shown(panel) else None
                panel.barh(place, value["p50"], 0.85, xerr=spread, color=COLOURS[name],
                           ecolor=SOFT, label=label)  # fmt: skip
                text = f"{value['p50']:.{1 if key == 'clips_per_s' else 0}f}"
                panel.annotate(text, (value["p80"], place), (4, 0), va="center", fontsize=8,
                               textcoords="offset points")  # fmt: skip
                place += 1
            place += 0.7
        panel.set_yticks(ticks, [case.replace(", ", "\n") for case in cases], fontsize=9)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
    axes[0].set_xlabel(f"clips/s, {record['config']['workers']} processes (more is better)")
    axes[1].set_xlabel("CPU ms per clip, all processes (less is better)")
    axes[1].set_yticklabels([])
    axes[1].legend(fontsize=9, frameon=False, ncols=3, borderaxespad=0,
                   loc="lower right", bbox_to_anchor=(1, 1.01))  # fmt: skip
    if trained:
        _draw_waiting(axes[2], trained)
    size, frames = record["config"]["size"], record["config"]["frames"]
    subtitle = f"{_where(record)}; {frames} x {size} x {size}; bars p50, lines p20 to p80"
    _title(axes[0], "Loading clips", subtitle)
    # It runs on above the next panel, and must not push that away.
    axes[0].texts[-1].set_in_layout(False)
    _save(figure, path)


def _draw_waiting(axes: Any, trained: dict[str, Any]) -> None:
    for place, entry in enumerate(trained.values()):
        wait, step = entry["wait_ms_per_clip"], entry["step_ms_per_clip"]
        first = place == 0
        axes.barh(place, wait, 0.7, color="#c45d00", label="waiting" if first else None)
        axes.barh(place, step, 0.7, left=wait, color="#b7c3d0", label="steps" if first else None)
        axes.annotate(f"{100 * entry['data_wait_frac']['p50']:.0f}% waiting", (wait + step, place),
                      (4, 0), textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(trained)), [name.replace(", ", "\n") for name in trained], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("training, small model: ms per clip")
    axes.legend(fontsize=9, frameon=False, ncols=2, borderaxespad=0, loc="lower right",
                bbox_to_anchor=(1, 1.01))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """0 drawn; 2 wrong use."""
    parser = bench.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("record", help="JSON of ops.py, throughput.py or decode.py")
    parser.add_argument("image", help="PNG to write")
    options = parser.parse_args(arguments)
    problem = plot_problem(options.image) or bench.check_writable(options.image, "image")
    if problem:
        return bench.fail(problem, 2)
    try:
        record = json.loads(Path(options.record).read_text())
        draws = {"ops": draw_ops, "decoding": draw_decoding}
        draw = next((draws[key] for key in draws if key in record), draw_throughput)
        draw(record, options.image)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return bench.fail(
            f"{options.record}: no record of ops.py or throughput.py, or decode.py ({error!r})", 2
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
