"""Pictures as ``data:`` URIs, small enough together for a page that is read on a phone."""

from __future__ import annotations

import base64
import io

import numpy as np

PAGE_BUDGET = 4_000_000
"""Bytes of encoded pictures that one page may hold, before base64 adds a third."""

# WebP qualities, tried in turn until the budget holds; None = lossless.
QUALITIES = (None, 90, 75, 50, 25)


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
