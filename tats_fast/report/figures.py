"""Labelled composites for files and READMEs, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from tats_fast.config import RunConfig
from tats_fast.report.analysis import SAMPLER, ClipAnalysis
from tats_fast.report.pictures import ERROR_TOP, Row, clip_rows, fit, heat_top, strip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN, GUTTER = 8, 4
NAME_WIDTH, TITLE_HEIGHT = 132, 54
DPI = 64  # a power of two, so that no pixel is lost to rounding
TEXT = {"va": "center", "color": "#282828", "fontsize": 13.5}


def clip_figure(config: RunConfig, analysis: ClipAnalysis, top: float) -> Figure:
    """All rows of one clip with their names on the left.

    Args:
        top: N p at the bright end of the heat maps, from ``heat_top``.
    """
    rows = clip_rows(config, analysis, top)
    pictures = [[strip(fit(row.pictures), GUTTER)] for row in rows]
    return _sheet(pictures, names=[_row_name(row, top) for row in rows])


def summary_figure(config: RunConfig, analyses: list[ClipAnalysis], limit: int = 4) -> Figure:
    """One row per clip, one column per view.

    Columns: the frame; the visible tokens of every strategy; the sampler's heat map where there is
    one; reconstruction and error of the first strategy. Each row shows the token-frame with the
    most motion, which depends on the clip alone.

    Raises:
        ValueError: no clips.
    """
    if not analyses:
        raise ValueError("expected at least one analysed clip, got none")
    analyses = analyses[:limit]
    top = heat_top(analyses)
    pictures = []
    for analysis in analyses:
        frame = int(analysis.motion.reshape(config.model.token_frames, -1).sum(axis=1).argmax())
        views = _views(clip_rows(config, analysis, top))
        pictures.append([fit(row.pictures[frame : frame + 1], 128)[0] for row in views])
    return _sheet(pictures, titles=[_row_name(row, top) for row in views])


def _views(rows: list[Row]) -> list[Row]:
    by_group = {group: list(members) for group, members in groupby(rows, attrgetter("group"))}
    heat = [row for row in by_group["probability"] if row.strategy == SAMPLER]
    results = [by_group[group][0] for group in ("reconstruction", "error")]
    return [*by_group["frames"], *by_group["visible tokens"], *heat, *results]


def _row_name(row: Row, top: float) -> str:
    name = f"{row.strategy}\n{row.group}".strip()
    if row.group == "probability":
        return f"{name}\n1/{top:g} to {top:g} × chance"
    if row.group == "error":
        return f"{name}, 0 to {ERROR_TOP:g}\n(grey: visible)"
    return name


def _sheet(
    pictures: list[list[np.ndarray]], names: Sequence[str] = (), titles: Sequence[str] = ()
) -> Figure:
    """Rows of pictures (H, W, 3) uint8 of one size, pixel for pixel on white, with a name to the
    left of every row or a title above every column."""
    from matplotlib.figure import Figure

    height, width = pictures[0][0].shape[:2]
    lefts = MARGIN + (NAME_WIDTH if names else 0) + np.arange(len(pictures[0])) * (width + GUTTER)
    tops = MARGIN + (TITLE_HEIGHT if titles else 0) + np.arange(len(pictures)) * (height + GUTTER)
    wide, high = lefts[-1] + width + MARGIN, tops[-1] + height + MARGIN
    figure = Figure((wide / DPI, high / DPI), dpi=DPI, facecolor="white")
    for top, row in zip(tops, pictures, strict=True):
        for left, picture in zip(lefts, row, strict=True):
            figure.figimage(picture, left, high - top - height)
    for top, name in zip(tops, names, strict=False):
        figure.text(MARGIN / wide, 1 - (top + height / 2) / high, name, ha="left", **TEXT)
    for left, title in zip(lefts, titles, strict=False):
        y = 1 - (MARGIN + TITLE_HEIGHT / 2) / high
        figure.text((left + width / 2) / wide, y, title, ha="center", **TEXT)
    return figure
