"""``tats-fast export``: a folder that other libraries load, complete or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

from tats_fast.config import ConfigError
from tats_fast.interchange.huggingface import write_hugging_face
from tats_fast.interchange.model_card import model_card
from tats_fast.interchange.weights import Weights


def export_hugging_face(weights: Weights, out: Path) -> Path:
    """Write a folder for Transformers' ``from_pretrained`` with a model card.

    Raises:
        ConfigError: ``out`` is there and not empty, or Transformers has no such model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out={out}: exists and is not an empty folder")
    temporary = out.with_name(f".writing_{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_hugging_face(weights, temporary)
        (temporary / "README.md").write_text(model_card(weights))
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out
