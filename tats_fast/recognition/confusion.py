"""A confusion matrix as a table and as a picture, drawn with Pillow. Legend: K classes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

INK, SOFT, LINE, NOTHING = (34, 34, 34), (105, 105, 105), (205, 205, 205), (228, 228, 228)
WHITE = (255, 255, 255)
SHADES = np.array([WHITE, (166, 202, 232), (52, 118, 186), (8, 34, 88)], np.float64)
TICKS = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)
MARGIN, GAP = 20, 8
TEXT, TITLE = 13, 21
LABEL_WIDTH = 250
LABEL_STEP = 12  # pixels from one class's name to the next
# Pillow's own font has plain Latin letters only. The others are looked for on this machine; a name
# that none of them can write gives way to the class's number.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc"),
    *("wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf"),
)
UNKNOWN = "\U0010fffe"  # no character, so every font draws its box for those that it lacks


def confusion_rows(matrix: Tensor, names: Sequence[str]) -> Iterator[list[object]]:
    """A header of predicted classes, then a row per true class: ``matrix`` (K, K) as a table."""
    yield ["true \\ predicted", *names]
    for name, row in zip(names, matrix.tolist(), strict=True):
        yield [name, *row]


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row over its sum: (K, K) int -> (K, K) fp64; NaN where a class has no video."""
    videos = counts.sum(axis=1, keepdims=True)
    return np.where(videos > 0, counts / np.maximum(videos, 1), np.nan)


def shades(shares: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 of shares (...) in [0, 1], white to dark blue along their square root,
    so that one video in a hundred still shows; grey where NaN."""
    place = np.sqrt(np.nan_to_num(shares)) * (len(SHADES) - 1)
    stops = np.arange(len(SHADES))
    channels = [np.interp(place, stops, SHADES[:, channel]) for channel in range(3)]
    colours = np.where(np.isnan(shares)[..., None], NOTHING, np.stack(channels, -1))
    return np.round(colours).astype(np.uint8)


def cell_side(classes: int) -> int:
    """Pixels per class: up to 96, then so many that the matrix has 900 to 2400 (400 classes)."""
    return min(96, max(900 // classes, LABEL_STEP if classes <= 200 else LABEL_STEP // 2))


def confusion_picture(matrix: Tensor, names: Sequence[str], title: str, subtitle: str) -> bytes:
    """PNG of ``matrix`` (K, K) int64, rows true and columns predicted, each row over its sum.

    Up to 200 classes all are named, beyond that every other one. Long names lose their middle.
    """
    from PIL import Image

    counts = matrix.numpy()
    classes, cell = len(counts), cell_side(len(counts))
    side = classes * cell
    named = range(0, classes, math.ceil(LABEL_STEP / cell))
    size = max(10, min(TEXT, cell - 2))
    labels = {i: _label(names[i], i, size) for i in named}
    longest = max(label.width for label in labels.values())
    if longest > cell - 4:  # under the columns they fit only when turned
        turned = {i: label.rotate(90, expand=True) for i, label in labels.items()}
    else:
        turned = labels
    below = max(label.height for label in turned.values())
    empty = int((counts.sum(axis=1) == 0).sum())
    if empty:
        subtitle += f"; grey rows: {empty} without a video"
    heading = [_text(title, TITLE), _text(subtitle, TEXT)]
    true, predicted = (
        _text("true class", TEXT).rotate(90, expand=True),
        _text("predicted class", TEXT),
    )
    scale = _scale(max(160, min(side, 320)))

    left = MARGIN + true.width + GAP + longest + GAP
    top = MARGIN + sum(line.height + GAP for line in heading) + GAP
    right = max(left + side + 3 * GAP + scale.width, *(MARGIN + line.width for line in heading))
    bottom = top + max(side + GAP + below + GAP + predicted.height, scale.height)
    picture = Image.new("RGB", (right + MARGIN, bottom + MARGIN), WHITE)
    y = MARGIN
    for line, colour in zip(heading, (INK, SOFT), strict=True):
        picture.paste(colour, (MARGIN, y), line)
        y += line.height + GAP
    picture.paste(LINE, (left - 1, top - 1, left + side + 1, top + side + 1))
    picture.paste(_cells(counts, cell), (left, top))
    for i in named:
        middle = i * cell + cell // 2
        y = top + middle - labels[i].height // 2
        picture.paste(INK, (left - GAP - labels[i].width, y), labels[i])
        x = left + middle - turned[i].width // 2
        picture.paste(INK, (x, top + side + GAP), turned[i])
    picture.paste(SOFT, (MARGIN, top + max(0, side - true.height) // 2), true)
    x = left + max(0, side - predicted.width) // 2
    picture.paste(SOFT, (x, top + side + GAP + below + GAP), predicted)
    picture.paste(scale, (left + side + 3 * GAP, top))

    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _cells(counts: np.ndarray, cell: int) -> Image:
    """The matrix alone, with lines between the cells and percentages in them if there is room."""
    from PIL import Image

    shares = row_shares(counts)
    side = len(counts) * cell
    image = Image.fromarray(shades(shares)).resize((side, side), Image.Resampling.NEAREST)
    if cell < 28:
        return image
    for k in range(1, len(counts)):
        image.paste(LINE, (k * cell, 0, k * cell + 1, side))
        image.paste(LINE, (0, k * cell, side, k * cell + 1))
    for row, column in np.argwhere(counts > 0):
        share = shares[row, column]
        text = _text(f"{100 * share:.0f}" if share >= 0.005 else "<1", TEXT)
        x, y = ((2 * k + 1) * cell // 2 for k in (column, row))
        ink = WHITE if share > 0.3 else INK
        image.paste(ink, (x - text.width // 2, y - text.height // 2), text)
    return image


def _scale(height: int) -> Image:
    """Which colour is which share of a row."""
    from PIL import Image

    titles, bar = _text("share of row", TEXT), 14
    ticks = [_text(f"{100 * share:g} %", TEXT) for share in TICKS]
    pad = ticks[0].height // 2  # a tick's text reaches beyond the bar's ends
    reach = height - titles.height - GAP - 2 * pad
    width = max(titles.width, bar + GAP + max(tick.width for tick in ticks))
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(SOFT, (0, 0), titles)
    top = height - pad - reach
    places = np.linspace(1, 0, reach) ** 2
    image.paste(LINE, (0, top - 1, bar + 2, top + reach + 1))
    image.paste(Image.fromarray(shades(np.repeat(places[:, None], bar, axis=1))), (1, top))
    for share, tick in zip(TICKS, ticks, strict=True):
        y = top + round((1 - math.sqrt(share)) * (reach - 1))
        image.paste(SOFT, (bar + GAP, y - pad), tick)
    return image


def _label(name: str, number: int, size: int) -> Image:
    """A class's name, no wider than ``LABEL_WIDTH``: names of one kind often differ at their end,
    so the middle goes."""
    text = " ".join(name.split())
    font = _font_for(text, size)
    if not text or font is None:
        return _text(f"class {number}", size)
    kept = len(text)
    short = text
    while font.getlength(short) > LABEL_WIDTH:
        kept -= 1
        short = f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
    return _text(short, size, font)


def _text(text: str, size: int, font: FreeTypeFont | None = None) -> Image:
    """A line of text as a mask to paste a colour through: white on black, 8 bits."""
    from PIL import Image, ImageDraw

    font = font or _fonts(size)[0]
    image = Image.new("L", (max(1, math.ceil(font.getlength(text))), size + 4), 0)
    ImageDraw.Draw(image).text((0, size + 1), text, fill=255, font=font, anchor="ls")
    return image


@lru_cache
def _fonts(size: int) -> tuple[FreeTypeFont, ...]:
    """Pillow's font, then those of ``FONTS`` that this machine has."""
    from PIL import ImageFont

    found = [ImageFont.load_default(size=size)]
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


def _font_for(text: str, size: int) -> FreeTypeFont | None:
    """The first font that has all characters of ``text``."""
    for font in _fonts(size):
        box = bytes(font.getmask(UNKNOWN))
        if all(c == " " or bytes(font.getmask(c)) != box for c in set(text)):
            return font
    return None
