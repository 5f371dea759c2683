"""One self-contained HTML page about a run: no script, no request to anywhere."""

from __future__ import annotations

import html
import platform
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from tats_fast.config import RunConfig
from tats_fast.report.analysis import DRAWS, SAMPLER, ClipAnalysis
from tats_fast.report.content import Headline, charts, explanation, headlines, warmup_end
from tats_fast.report.curves import Chart, chart_html
from tats_fast.report.markup import strip_group, strip_images, strip_row, table_html
from tats_fast.report.pictures import (
    ERROR_COLOURS,
    ERROR_TOP,
    HEAT_COLOURS,
    Row,
    clip_rows,
    colours,
    heat_top,
)
from tats_fast.report.probes import Probes, probes_html
from tats_fast.report.style import CSS
from tats_fast.version import __version__


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a page shows."""

    config: RunConfig
    checkpoint: str
    """What was looked at, for example "demo, step 500"."""
    clips: list[tuple[str, ClipAnalysis]]
    """Name and analysis of each clip."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Name of each video left out, and why."""
    omitted: int = 0
    """Videos asked for beyond those a page shows."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl, by step; empty = no training curves."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Rows of eval.jsonl, by step; empty = no headline numbers."""
    probes: Probes | None = None
    """Of this checkpoint; None = no section about them."""
    seed: int = 0
    """Seed of the draws."""


def render_page(report: Report) -> str:
    """The page as HTML text; about 6 MB at most, whatever the number and size of the clips."""
    title = html.escape(f"TATS-Fast: {report.config.name}")
    main, more = map(_curves, charts(report.metrics, report.evaluations))
    body = "\n".join(
        [
            f"<header><h1>{title}</h1><p class='sub'>{html.escape(report.checkpoint)}</p></header>",
            f"<p class='lead'>{html.escape(explanation(report.config))}</p>",
            _headlines(headlines(report.evaluations)),
            _main_curves(main, warmup_end(report.metrics)),
            _clips(report),
            "" if report.probes is None else probes_html(report.probes),
            _footer(report.config, more),
        ]
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<meta name='color-scheme' content='light dark'><title>{title}</title>"
        f"<style>{CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _headlines(numbers: list[Headline]) -> str:
    if not numbers:
        return ""
    cards = []
    for number in numbers:
        value, change = f"{number.last:.3f}", ""
        if number.steps[0] != number.steps[1]:
            value = f"{number.first:.3f} <span aria-label='to'>→</span> {number.last:.3f}"
            if number.percent and number.first:
                share = 100 * (number.last / number.first - 1)
                change = f"<span class='change'>{share:+.1f}%</span>"
        cards.append(
            f"<div class='card'><h3>{html.escape(number.name)}</h3>"
            f"<p class='value'>{value} {change}</p><p>{html.escape(number.meaning)}</p></div>"
        )
    first, last = numbers[0].steps
    when = (
        f"Before and after: evaluation at step {first} → step {last}, on held-out clips."
        if first != last
        else f"From the only evaluation, at step {last}, on held-out clips."
    )
    return (
        f"<section><h2>Headline numbers</h2><p class='sub'>{when}</p>"
        f"<div class='cards'>{''.join(cards)}</div></section>"
    )


def _curves(charts: list[Chart]) -> str:
    figures = "".join(map(chart_html, charts))
    return f"<div class='charts'>{figures}</div>" if figures else ""


def _main_curves(figures: str, warmup: int | None) -> str:
    if not figures:
        return ""
    note = "Horizontal: optimizer steps. A dashed level marks the value named in the caption."
    if warmup is not None:
        note += f" Until step {warmup} the sampler rested and masks were random (warm-up)."
    return f"<section><h2>Curves</h2><p class='sub'>{note}</p>{figures}</section>"


def _clips(report: Report) -> str:
    top = heat_top([analysis for _, analysis in report.clips])
    rows = [clip_rows(report.config, analysis, top) for _, analysis in report.clips]
    described = [
        (_describe(row, name), row.pictures)
        for (name, _), clip in zip(report.clips, rows, strict=True)
        for row in clip
    ]
    images = iter(strip_images(described))
    parts = ["<section><h2>Clips</h2>"]
    if report.unreadable:
        items = "".join(
            f"<li><code>{html.escape(name)}</code>: {html.escape(reason)}</li>"
            for name, reason in report.unreadable
        )
        parts.append(f"<div class='warn'><b>Could not be read</b><ul>{items}</ul></div>")
    if report.omitted:
        text = f"{report.omitted} more videos were given and are not shown."
        parts.append(f"<p class='sub'>{text}</p>")
    parts.append(_how_to_read(report, top))
    for (name, analysis), clip in zip(report.clips, rows, strict=True):
        strips = []
        for group, members in groupby(clip, key=attrgetter("group")):
            strips.append(f"<h4 class='stick'>{group.capitalize()}</h4>")
            strips += [strip_row(_strategy(row.strategy), next(images)) for row in members]
        parts.append(
            f"<article><h3>{html.escape(name)}</h3>{_table(analysis)}"
            f"{strip_group(f'pictures of {name}', strips)}</article>"
        )
    return "".join(parts) + "</section>"


def _strategy(name: str) -> str:
    if name == SAMPLER:
        return "learned sampler"
    return name and f"{name} draw"


def _describe(row: Row, clip: str) -> str:
    strategy = f" ({_strategy(row.strategy)})" if row.strategy else ""
    return f"{row.group.capitalize()}{strategy} of {clip}, one per token-frame"


def _table(analysis: ClipAnalysis) -> str:
    rows = []
    for name, draw in analysis.draws.items():
        lifts = ["still clip", "–"]
        if analysis.motion.any():
            lifts = [f"{draw.motion_lift:.2f}", f"{draw.mean_motion_lift:.2f}"]
        rows.append((_strategy(name), [f"{len(draw.visible)}", f"{draw.loss:.3f}", *lifts]))
    return table_html(("visible", "error", "motion lift", "mean lift"), rows)


def _how_to_read(report: Report, top: float) -> str:
    model = report.config.model
    heat = _scale(HEAT_COLOURS, [f"1/{top:g}", "1 = chance", f"{top:g}×"])
    error = _scale(ERROR_COLOURS, ["0", f"{ERROR_TOP / 2:g}", f"{ERROR_TOP:g}"])
    return f"""<div class='legendbox'>
<p>One picture per token-frame (the first of its {model.tubelet_size} frames), in order of time;
strips scroll sideways. All draws of a clip have the same number of visible tokens, each with random
numbers of its own (seed {report.seed}).</p>
<dl>
<dt>Probability</dt><dd>{heat} How likely a token is to be drawn first, relative to
chance, over a grey copy of the frame. The scale is logarithmic; beyond its ends the colour stays
the same.</dd>
<dt>Visible tokens</dt><dd>One draw each. Hidden tokens are darkened.</dd>
<dt>Reconstruction</dt><dd>Visible tokens are the input itself. The network predicts only the
pattern of a hidden token; its true mean colour and contrast are put back for display, so the
right colours are no achievement of the network.</dd>
<dt>Error</dt><dd>{error} Mean squared error of each hidden token in units of its own contrast:
1 = painting it in its mean colour, 0 = perfect. Grey = visible.</dd>
<dt>Table</dt><dd>“error” is the mean over hidden tokens; draws hide different tokens, so it
compares masks, not networks. “motion lift” is the mean motion of the visible tokens relative to
all tokens (1 = chance) in the draw shown, “mean lift” its mean over {DRAWS} draws.</dd>
</dl></div>"""


def _scale(palette: str, labels: list[str]) -> str:
    stops = [f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in colours(np.linspace(0, 1, 9), palette)]
    gradient = f"background:linear-gradient(to right,{','.join(stops)})"
    texts = "".join(f"<span>{html.escape(label)}</span>" for label in labels)
    return (
        f"<span class='scale'><span class='bar' style='{gradient}'></span>"
        f"<span class='ends'>{texts}</span></span>"
    )


def _footer(config: RunConfig, more: str) -> str:
    import torch
    import yaml

    from tats_fast.config.reading import to_dict

    settings = html.escape(yaml.safe_dump(to_dict(config), sort_keys=False))
    versions = html.escape(
        f"tats-fast {__version__}, PyTorch {torch.__version__}, NumPy {np.__version__}, "
        f"Python {platform.python_version()}"
    )
    if more:
        more = f"<details><summary>More curves</summary>{more}</details>"
    return (
        f"<section><h2>Run</h2>{more}<details><summary>Configuration</summary>"
        f"<pre>{settings}</pre></details><p class='sub'>Made with {versions}.</p></section>"
    )
