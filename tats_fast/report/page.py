"""One self-contained HTML page about a run: no script, no request to anywhere."""

from __future__ import annotations

import html
import platform
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tats_fast.config import RunConfig
from tats_fast.report.analysis import DRAWS, ClipAnalysis
from tats_fast.report.content import (
    MAIN_CHARTS,
    Headline,
    charts,
    explanation,
    headlines,
    warmup_end,
)
from tats_fast.report.curves import chart_html
from tats_fast.report.images import data_uris
from tats_fast.report.pictures import (
    ERROR_TOP,
    GAP,
    MAGMA,
    VIRIDIS,
    Row,
    clip_rows,
    fit,
    heat_top,
    strip,
)
from tats_fast.report.probes import Probes, probes_html
from tats_fast.report.style import CSS
from tats_fast.version import __version__

GROUP_TITLES = {
    "frames": "Frames",
    "probability": "Probability",
    "visible": "Visible tokens",
    "reconstruction": "Reconstruction",
    "error": "Error",
}
STRATEGY_NAMES = {
    "sampler": "learned sampler",
    "random": "random draw",
    "motion": "motion draw",
    "tube": "tube draw",
    "frame": "frame draw",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page tells."""

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
    body = "\n".join(
        [
            f"<header><h1>{title}</h1><p class='sub'>{html.escape(report.checkpoint)}</p></header>",
            f"<p class='lead'>{html.escape(explanation(report.config))}</p>",
            _headlines(headlines(report.evaluations)),
            _main_curves(report),
            _clips(report),
            "" if report.probes is None else probes_html(report.probes),
            _footer(report),
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


def _curves(report: Report, main: bool) -> str:
    figures = "".join(
        chart_html(chart)
        for chart in charts(report.metrics, report.evaluations)
        if (chart.title in MAIN_CHARTS) == main
    )
    return f"<div class='charts'>{figures}</div>" if figures else ""


def _main_curves(report: Report) -> str:
    figures = _curves(report, main=True)
    if not figures:
        return ""
    note = "Horizontal: optimizer steps. A dashed level marks the value named in the caption."
    warm = warmup_end(report.metrics)
    if warm is not None:
        note += f" Until step {warm} the sampler rested and masks were random (warm-up)."
    return f"<section><h2>Curves</h2><p class='sub'>{note}</p>{figures}</section>"


def _clips(report: Report) -> str:
    config = report.config
    top = heat_top([analysis for _, analysis in report.clips])
    rows = [clip_rows(config, analysis, top) for _, analysis in report.clips]
    pictures = [strip(fit(row.pictures), background=GAP) for clip in rows for row in clip]
    uris = iter(data_uris(pictures))
    sizes = iter(pictures)
    parts = ["<section><h2>Clips</h2>", _omissions(report)]
    if report.clips:
        parts.append(_how_to_read(report, top))
    for (name, analysis), clip in zip(report.clips, rows, strict=True):
        strips, group = [], ""
        for row in clip:
            if row.group != group:
                group = row.group
                strips.append(f"<h4 class='stick'>{GROUP_TITLES[group]}</h4>")
            strips.append(_strip(name, row, next(sizes), next(uris)))
        parts.append(
            f"<article><h3>{html.escape(name)}</h3>{_table(analysis)}"
            f"<div class='strips' tabindex='0' role='group' aria-label='pictures of "
            f"{html.escape(name, quote=True)}'>{''.join(strips)}</div></article>"
        )
    return "".join(parts) + "</section>"


def _strip(name: str, row: Row, picture: np.ndarray, uri: str) -> str:
    who = STRATEGY_NAMES.get(row.strategy, row.strategy)
    what = f"{GROUP_TITLES[row.group]}{f' ({who})' if who else ''} of {name}, one per token-frame"
    height, width = picture.shape[:2]
    label = f"<span class='stick who'>{html.escape(who)}</span>" if who else ""
    return (
        f"<div class='row'>{label}<img src='{uri}' width='{width}' height='{height}' "
        f"alt='{html.escape(what, quote=True)}'></div>"
    )


def _table(analysis: ClipAnalysis) -> str:
    still = not analysis.motion.any()
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(STRATEGY_NAMES.get(name, name))}</th>"
        f"<td>{len(draw.visible)}</td><td>{draw.loss:.3f}</td>"
        + (
            "<td colspan='2'>still clip</td>"
            if still
            else f"<td>{draw.motion_lift:.2f}</td><td>{draw.mean_motion_lift:.2f}</td>"
        )
        + "</tr>"
        for name, draw in analysis.draws.items()
    )
    return (
        "<div class='scroll'><table><thead><tr><th></th><th scope='col'>visible</th>"
        "<th scope='col'>error</th><th scope='col'>motion lift</th>"
        f"<th scope='col'>mean lift</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _omissions(report: Report) -> str:
    parts = []
    if report.unreadable:
        items = "".join(
            f"<li><code>{html.escape(name)}</code>: {html.escape(reason)}</li>"
            for name, reason in report.unreadable
        )
        parts.append(f"<div class='warn'><b>Could not be read</b><ul>{items}</ul></div>")
    if report.omitted:
        parts.append(
            f"<p class='sub'>{report.omitted} more videos were given and are not shown.</p>"
        )
    return "".join(parts)


def _how_to_read(report: Report, top: float) -> str:
    model = report.config.model
    heat = _scale(VIRIDIS, [f"1/{top:g}", "1 = chance", f"{top:g}×"])
    error = _scale(MAGMA, ["0", f"{ERROR_TOP / 2:g}", f"{ERROR_TOP:g}"])
    return f"""<div class='legendbox'>
<p>One picture per token-frame (the first of its {model.tubelet_size} frames), in order of time;
strips scroll sideways. All draws of a clip show equally many tokens and share their random
numbers (seed {report.seed}).</p>
<dl>
<dt>Probability</dt><dd>{heat} How likely a token is to be drawn first, over chance, on a
logarithmic scale, over a grey copy of the frame; beyond the ends the colour stays.</dd>
<dt>Visible tokens</dt><dd>One draw each. Hidden tokens are darkened.</dd>
<dt>Reconstruction</dt><dd>Visible tokens are the input itself. The network predicts only the
pattern of a hidden token; its true mean colour and contrast are put back for display, so right
colours are no merit of the network.</dd>
<dt>Error</dt><dd>{error} Mean squared error of each hidden token in units of its own contrast:
1 = painting it in its mean colour, 0 = perfect. Grey = visible.</dd>
<dt>Table</dt><dd>“error” is the mean over hidden tokens; draws hide different tokens, so it
compares masks, not networks. “motion lift” is the motion of the visible tokens over that of all
(1 = chance) in the draw shown, “mean lift” its mean over {DRAWS} draws.</dd>
</dl></div>"""


def _scale(anchors: tuple[tuple[int, int, int], ...], labels: list[str]) -> str:
    stops = ",".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in anchors)
    gradient = f"background:linear-gradient(to right,{stops})"
    texts = "".join(f"<span>{html.escape(label)}</span>" for label in labels)
    return (
        f"<span class='scale'><span class='bar' style='{gradient}'></span>"
        f"<span class='ends'>{texts}</span></span>"
    )


def _footer(report: Report) -> str:
    import torch
    import yaml

    from tats_fast.config.reading import to_dict

    config = html.escape(yaml.safe_dump(to_dict(report.config), sort_keys=False))
    versions = (
        f"tats-fast {__version__}, PyTorch {torch.__version__}, NumPy {np.__version__}, "
        f"Python {platform.python_version()}"
    )
    more = _curves(report, main=False)
    if more:
        more = f"<details><summary>More curves</summary>{more}</details>"
    return (
        f"<section><h2>Run</h2>{more}<details><summary>Configuration</summary><pre>{config}</pre></details>"
        f"<p class='sub'>Made with {html.escape(versions)}.</p></section>"
    )
