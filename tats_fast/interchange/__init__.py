"""Weights from and for other projects: Transformers, VideoMAE, VideoMAE V2, AdaMAE."""

from tats_fast.interchange.export import export_hugging_face
from tats_fast.interchange.load import read_weights
from tats_fast.interchange.weights import (
    Weights,
    build_classifier,
    build_encoder,
    run_config,
    save_weights,
)

__all__ = [
    "Weights",
    "build_classifier",
    "build_encoder",
    "export_hugging_face",
    "read_weights",
    "run_config",
    "save_weights",
]
