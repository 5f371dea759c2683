"""An encoder or a classifier as an ONNX file."""

from __future__ import annotations

import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from tats_fast.config import ConfigError
from tats_fast.interchange.weights import Weights, build_classifier, build_encoder
from tats_fast.models.encoder import VideoEncoder

# Bytes of weights beyond which they go into a file beside: protobuf takes 2 GiB at most.
_ONE_FILE = 1_900_000_000


class _Features(nn.Module):
    """``forward_features`` as ``forward``, which is what gets exported."""

    def __init__(self, encoder: VideoEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, video: Tensor) -> Tensor:
        return self.encoder.forward_features(video)


def export_onnx(weights: Weights, out: Path) -> Path:
    """Write ``out``: from ``video`` (B, 3, T, H, W), fp32 and normalised as ``load_encoder`` takes
    it, to ``features`` (B, N, C), or of a classifier to ``logits`` (B, K); B is free.

    The file's metadata has the sizes (``model``, JSON) and a classifier's ``classes`` (JSON). More
    than 1.9 GB of weights lie in a file beside it.

    Raises:
        ConfigError: ``out`` does not end in .onnx or exists, or the exporter is not installed.
    """
    if out.suffix != ".onnx":
        raise ConfigError(f"out={out}: must end in .onnx")
    if out.exists():
        raise ConfigError(f"out={out}: exists")
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise ConfigError(f"to=onnx: {name} is not installed; pip install 'tats-fast[onnx]'")
    model = weights.model
    classifies = weights.head is not None
    network = build_classifier(weights) if classifies else _Features(build_encoder(weights))
    shape = (2, 3, model.num_frames, model.image_size, model.image_size)
    program = _export(network.eval(), torch.zeros(shape), "logits" if classifies else "features")
    sizes = ("image_size", "num_frames", "tubelet_size", "patch_size", "width", "depth", "heads")
    program.model.metadata_props["model"] = json.dumps({n: getattr(model, n) for n in sizes})
    if classifies:
        program.model.metadata_props["classes"] = json.dumps(weights.classes)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    out.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(out), external_data=size > _ONE_FILE)
    return out


def _export(network: nn.Module, video: Tensor, output: str) -> torch.onnx.ONNXProgram:
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                network,
                (video,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=["video"],
                output_names=[output],
                verbose=False,
            )
    finally:
        noisy.setLevel(level)
