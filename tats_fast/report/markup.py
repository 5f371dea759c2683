"""Parts of the page that hold data: tables, and strips of pictures as ``data:`` URIs, small enough
together for a page that is read on a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from tats_fast.report.pictures import GAP, fit, strip

PAGE_BUDGET = 4_000_000
"""Bytes of encoded pictures that one page may hold, before base64 adds a third."""

# WebP qualities, tried in turn until the budget holds; None = lossless.
QUALITIES = (None, 90, 75, 50, 25)


def table_html(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of ``rows``, each a name and a text per column."""
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    return (
        f"<div class='scroll'><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def strip_images(
    strips: Sequence[tuple[str, np.ndarray]], budget: int = PAGE_BUDGET
) -> Iterable[str]:
    """An ``<img>`` for each description and its frames (F, S, S, 3) uint8, which lie side by side;
    all in the best quality that fits ``budget`` bytes together."""
    pictures = [strip(fit(frames), background=GAP) for _, frames in strips]
    for (text, _), picture, uri in zip(strips, pictures, data_uris(pictures, budget), strict=True):
        height, width = picture.shape[:2]
        yield f"<img src='{uri}' width='{width}' height='{height}' alt='{escape(text)}'>"


def strip_row(name: str, image: str) -> str:
    """An image from ``strip_images`` with a name above it; "" = without one."""
    label = f"<span class='stick who'>{escape(name)}</span>" if name else ""
    return f"<div class='row'>{label}{image}</div>"


def strip_group(description: str, rows: Iterable[str]) -> str:
    """Rows of ``strip_row``, and headings between them, that scroll sideways together."""
    return (
        "<div class='strips' tabindex='0' role='group' "
        f"aria-label='{escape(description)}'>{''.join(rows)}</div>"
    )


def data_uris(pictures: list[np.ndarray], budget: int = PAGE_BUDGET) -> list[str]:
    """``data:image/webp`` URIs of (H, W, 3) uint8 pictures, all in the best quality that fits
    ``budget`` bytes together (the lowest if none does)."""
    encoded: list[bytes] = []
    for quality in QUALITIES:
        encoded = []
        for picture in pictures:
            encoded.append(_webp(picture, quality))
            if sum(map(len, encoded)) > budget and quality != QUALITIES[-1]:
                break
        else:
            break
    return ["data:image/webp;base64," + base64.b64encode(data).decode() for data in encoded]


def _webp(picture: np.ndarray, quality: int | None) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    options = {"lossless": True} if quality is None else {"quality": quality}
    Image.fromarray(picture).save(buffer, "WEBP", **options)
    return buffer.getvalue()
