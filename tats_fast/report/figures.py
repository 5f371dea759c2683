"""Labelled composites for files and READMEs, drawn with Pillow."""

from __future__ import annotations

import numpy as np

from tats_fast.config import RunConfig
from tats_fast.report.analysis import SAMPLER, ClipAnalysis
from tats_fast.report.pictures import (
    ERROR_TOP,
    Row,
    clip_rows,
    error_map,
    fit,
    heat_overlay,
    heat_top,
    masked_frames,
    strip,
    token_frames,
)

GUTTER = 4
LABEL_WIDTH = 132
INK = (40, 40, 40)


def clip_figure(config: RunConfig, analysis: ClipAnalysis, top: float) -> np.ndarray:
    """All rows of one clip with their names on the left: (H, W, 3) uint8 on white.

    Args:
        top: N p at the bright end of the heat maps, from ``heat_top``.
    """
    bands = []
    for row in clip_rows(config, analysis, top):
        pictures = strip(fit(row.pictures), GUTTER)
        name = _label(_row_lines(row, top), LABEL_WIDTH, pictures.shape[0], left=True)
        bands.append(np.concatenate([name, pictures], axis=1))
    return _framed(_stack(bands, axis=0))


def summary_figure(config: RunConfig, analyses: list[ClipAnalysis], limit: int = 4) -> np.ndarray:
    """One row per clip, one column per view: (H, W, 3) uint8 on white.

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
    columns: list[tuple[list[str], list[np.ndarray]]] = []
    for i, analysis in enumerate(analyses):
        frame = int(analysis.motion.reshape(config.model.token_frames, -1).sum(axis=1).argmax())
        for j, (title, pictures) in enumerate(_views(config, analysis, top)):
            if i == 0:
                columns.append((title, []))
            columns[j][1].append(fit(pictures[frame : frame + 1], 128)[0])
    bands = []
    for title, cells in columns:
        head = _label(title, cells[0].shape[1], 36, left=False)
        bands.append(np.concatenate([head, _stack(cells, axis=0)]))
    return _framed(_stack(bands, axis=1))


def _views(
    config: RunConfig, analysis: ClipAnalysis, top: float
) -> list[tuple[list[str], np.ndarray]]:
    model, clip = config.model, analysis.clip
    views = [(["frame"], token_frames(clip, model))]
    for name, draw in analysis.draws.items():
        views.append(([name, "visible tokens"], masked_frames(clip, draw.visible, model)))
    if analysis.heat is not None:
        scale = f"1/{top:g} to {top:g} x chance"
        views.append(
            ([f"{SAMPLER} probability", scale], heat_overlay(clip, analysis.heat, model, top))
        )
    name, draw = next(iter(analysis.draws.items()))
    views.append(([name, "reconstruction"], token_frames(draw.reconstruction, model)))
    views.append(([name, f"error, 0 to {ERROR_TOP:g}"], error_map(draw.error, model)))
    return views


def _row_lines(row: Row, top: float) -> list[str]:
    if row.group == "probability":
        return [row.strategy, "probability", f"1/{top:g} to {top:g} x chance"]
    if row.group == "error":
        return [row.strategy, f"error, 0 to {ERROR_TOP:g}", "(grey: visible)"]
    return [row.strategy, row.group] if row.strategy else [row.group]


def _stack(parts: list[np.ndarray], axis: int) -> np.ndarray:
    gap = [(0, 0), (0, 0), (0, 0)]
    gap[axis] = (0, GUTTER)
    padded = [np.pad(part, gap, constant_values=255) for part in parts[:-1]]
    return np.concatenate([*padded, parts[-1]], axis=axis)


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((8, 8), (8, 8), (0, 0)), constant_values=255)


def _label(lines: list[str], width: int, height: int, left: bool) -> np.ndarray:
    """Lines of small text, centred in height, on white: (height, width, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    step, font = 16, ImageFont.load_default(size=13)
    y = (height - step * len(lines)) / 2
    for i, line in enumerate(lines):
        x = 0 if left else (width - draw.textlength(line, font=font)) / 2
        draw.text((x, y + i * step), line, fill=INK, font=font)
    return np.asarray(image)
