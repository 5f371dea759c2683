"""A confusion matrix as a table and as a picture, drawn with matplotlib. Legend: K classes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, LINE, NOTHING = "#222222", "#696969", "#cdcdcd", "#e4e4e4"
SHADES = ("#ffffff", "#a6cae8", "#3476ba", "#082258")
TICKS = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)
DPI = 72  # a point, in which matplotlib measures text, is a pixel
TEXT, TITLE = 13, 21
ROOMY = 28  # pixels per class from which a cell has room for its percentage
LABEL_STEP = 12  # pixels from one class's name to the next
LABEL_LENGTH = 37  # characters


def confusion_rows(matrix: Tensor, names: Sequence[str]) -> Iterator[list[object]]:
    """A header of predicted classes, then a row per true class: ``matrix`` (K, K) as a table."""
    yield ["true \\ predicted", *names]
    for name, row in zip(names, matrix.tolist(), strict=True):
        yield [name, *row]


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row over its sum: (K, K) int -> (K, K) fp64; NaN where a class has no video."""
    videos = counts.sum(axis=1, keepdims=True)
    return np.where(videos > 0, counts / np.maximum(videos, 1), np.nan)


def cell_side(classes: int) -> int:
    """Pixels per class: up to 96, then so many that the matrix has 900 to 2400 (400 classes)."""
    return min(96, max(900 // classes, LABEL_STEP if classes <= 200 else LABEL_STEP // 2))


def confusion_picture(matrix: Tensor, names: Sequence[str], title: str, subtitle: str) -> bytes:
    """PNG of ``matrix`` (K, K) int64, rows true and columns predicted, each row over its sum.

    Colours follow the square root of a share, so that one video in a hundred still shows. Up to
    200 classes all are named, beyond that every other one. Long names lose their middle.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure

    counts = matrix.numpy()
    classes, cell = len(counts), cell_side(len(counts))
    shares, side = row_shares(counts), classes * cell
    if empty := int(np.isnan(shares[:, 0]).sum()):
        subtitle += f"; grey rows: {empty} without a video"

    # The matrix fills the figure; what lies around it is added when the picture is saved.
    figure = Figure((side / DPI, side / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    palette = LinearSegmentedColormap.from_list("shares", SHADES).with_extremes(bad=NOTHING)
    look = {"cmap": palette, "norm": PowerNorm(0.5, 0, 1), "linewidth": 1}
    cells = axes.pcolormesh(shares, edgecolors=LINE if cell >= ROOMY else "none", **look)
    if cell >= ROOMY:
        _write_shares(axes, counts, shares)

    size = max(10, min(TEXT, cell - 2))
    named = np.arange(0, classes, math.ceil(LABEL_STEP / cell))
    labels = [class_label(names[i], i) for i in named]
    wide = max(map(len, labels)) * 0.6 * size > cell  # under the columns they fit only when turned
    plain = {"color": INK, "fontsize": size, "parse_math": False}
    axes.set_yticks(named + 0.5, labels, **plain)
    axes.set_xticks(named + 0.5, labels, rotation=90 if wide else 0, **plain)
    axes.set_ylabel("true class", color=SOFT, fontsize=TEXT)
    axes.set_xlabel("predicted class", color=SOFT, fontsize=TEXT)
    axes.invert_yaxis()
    axes.set_title(title, loc="left", color=INK, fontsize=TITLE, pad=34)
    above = {"xytext": (0, 12), "textcoords": "offset points", "fontsize": TEXT}
    axes.annotate(subtitle, (0, 1), xycoords="axes fraction", color=SOFT, **above)

    height = max(160, min(side, 320)) / side
    scale = figure.add_axes((1 + 24 / side, 1 - height, 14 / side, height))
    figure.colorbar(cells, cax=scale)
    scale.set_ylabel("share of row", color=SOFT, fontsize=TEXT)
    scale.set_yticks(TICKS, [f"{100 * share:g} %" for share in TICKS], color=SOFT, fontsize=TEXT)
    scale.minorticks_off()
    for panel in figure.axes:
        panel.tick_params(length=0, pad=7)
        for spine in panel.spines.values():
            spine.set_color(LINE)

    buffer = io.BytesIO()
    around = {"bbox_inches": "tight", "pad_inches": 20 / DPI, "facecolor": "white"}
    figure.savefig(buffer, format="png", dpi=DPI, pil_kwargs={"optimize": True}, **around)
    return buffer.getvalue()


def _write_shares(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Percentages in the cells that are not empty."""
    look = {"ha": "center", "va": "center_baseline", "fontsize": TEXT}
    for row, column in np.argwhere(counts > 0):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        colour = "white" if share > 0.3 else INK
        axes.text(column + 0.5, row + 0.5, text, color=colour, **look)


def class_label(name: str, number: int) -> str:
    """A class's name, at most ``LABEL_LENGTH`` characters long: names of one kind often differ at
    their end, so the middle goes. A name that the font cannot write gives way to the number."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    text = " ".join(name.split())
    font = get_font(findfont(FontProperties()))
    if not text or not all(map(font.get_char_index, map(ord, text))):
        return f"class {number}"
    if len(text) <= LABEL_LENGTH:
        return text
    half = (LABEL_LENGTH - 1) // 2
    return f"{text[:half].rstrip()}…{text[-half:].lstrip()}"
