"""Weights from any file, and for other projects: Transformers, VideoMAE, VideoMAE V2, AdaMAE.

Training state belongs to ``engine/checkpoint.py``.
"""

from tats_fast.interchange.huggingface import export_hugging_face
from tats_fast.interchange.load import read_weights
from tats_fast.interchange.weights import Weights, build_classifier, build_encoder, save_weights

__all__ = [
    "Weights",
    "build_classifier",
    "build_encoder",
    "export_hugging_face",
    "read_weights",
    "save_weights",
]
