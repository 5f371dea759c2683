"""Classifiers that are exchanged with Transformers and with the original code."""

from __future__ import annotations

import dataclasses

import torch
from models_exchanged import (
    frames_first,
    randomize,
    transformers_config,
)
from transformers import VideoMAEForVideoClassification

from tats_fast.config import FinetuneConfig, save_config
from tats_fast.config.reading import build_config
from tats_fast.models.classifier import VideoClassifier
from tats_fast.weights_file import write_state

CLASSES = ("wave", "Putting [something] on a table", "pour", "climb stairs", "{golf}")


def randomized(module, std: float):
    """Random parameters whose features have about the deviation ``std``; the head and all norms'
    scales stay large, so that what happens to features shows in the logits."""
    randomize(module, std)
    for name, parameter in module.named_parameters():
        if any(part in name for part in ("norm", "head.", "classifier.")):
            parameter.data.normal_(std=0.5)
    return module


def make_classifier(tree: dict, std: float = 0.2, norm_eps: float = 1e-6) -> VideoClassifier:
    model = build_config({"model": tree, "masking": {"strategy": "random", "ratio": 0.5}}).model
    classifier = randomized(VideoClassifier(model, len(CLASSES), norm_eps=norm_eps), std)
    classifier.encoder.positions.mul_(std / 0.2)  # else they alone make the features large
    return classifier


def write_fine_tuned(folder, classifier: VideoClassifier, norm_eps: float = 1e-6, **config):
    """A run with one checkpoint, as fine-tuning leaves it."""
    checkpoint = folder / "checkpoints" / "step_000100"
    checkpoint.mkdir(parents=True)
    save_config(FinetuneConfig(**config), checkpoint / "config.yaml")
    content = {
        "classifier": classifier.state_dict(),
        "model": dataclasses.asdict(classifier.encoder.config),
        "classes": list(CLASSES),
        "norm_eps": norm_eps,
    }
    write_state(content, checkpoint / "model.safetensors")
    return folder


def theirs_for(size: str, std: float = 0.2, **fields) -> VideoMAEForVideoClassification:
    names = {"id2label": dict(enumerate(CLASSES))}
    config = transformers_config(size, **{"use_mean_pooling": True, **names, **fields})
    theirs = randomized(VideoMAEForVideoClassification(config), std)
    embeddings = theirs.videomae.embeddings
    embeddings.position_embeddings = embeddings.position_embeddings * (std / 0.2)
    return theirs


def logits(model: torch.nn.Module, video: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(model, VideoClassifier):
            return model(video)
        return model(frames_first(video)).logits


def same_positions(model, like) -> None:
    """Positions are computed when a model is built; those made small above go along."""
    source = like.encoder.positions if isinstance(like, VideoClassifier) else None
    if source is None:
        source = like.videomae.embeddings.position_embeddings[0]
    if isinstance(model, VideoClassifier):
        model.encoder.positions.copy_(source)
    else:
        model.videomae.embeddings.position_embeddings = source[None].clone()


def from_transformers(folder, **others) -> VideoMAEForVideoClassification:
    theirs, report = VideoMAEForVideoClassification.from_pretrained(
        folder, output_loading_info=True, **others
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return theirs.eval()
