"""Where the project lies, and the sizes of a model small enough for a unit test."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TINY_MODEL = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
