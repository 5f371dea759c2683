"""ONNX files, run by ONNX Runtime: the outputs are ours, for any batch."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from classifiers_exchanged import CLASSES, make_classifier, write_fine_tuned
from models_exchanged import model_tree, randomize, read_run

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError
from tats_fast.config.reading import build_config
from tats_fast.interchange import Weights, read_weights
from tats_fast.interchange.onnx import export_onnx
from tats_fast.models import MaskedAutoencoder


@pytest.fixture
def weights(tmp_path) -> Weights:
    mae = MaskedAutoencoder(build_config({"model": model_tree("plain")}).model)
    randomize(mae)
    return read_run(mae, tmp_path / "run")


def outputs(file, video: torch.Tensor) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"video": video.numpy()})
    return result


def assert_same(file, network, config) -> None:
    for batch in (1, 3):
        shape = (batch, 3, config.num_frames, config.image_size, config.image_size)
        video = torch.randn(shape)
        with torch.no_grad():
            expected = network(video).numpy()
        np.testing.assert_allclose(outputs(file, video), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_encoder(weights, tmp_path):
    pytest.importorskip("onnxscript")
    run, file = tmp_path / "run", tmp_path / "new" / "encoder.onnx"
    assert main(["export", "--checkpoint", str(run), "--to", "onnx", "--out", str(file)]) == 0
    encoder = tats_fast.load_encoder(run)
    assert_same(file, encoder.forward_features, encoder.config)


@pytest.mark.slow
def test_a_classifier_brings_its_classes(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    run = write_fine_tuned(tmp_path / "run", make_classifier(model_tree("plain")))
    file = export_onnx(read_weights(run), tmp_path / "classifier.onnx")
    classifier = tats_fast.load_classifier(run)
    assert_same(file, classifier, classifier.encoder.config)
    metadata = {item.key: item.value for item in onnx.load(file).metadata_props}
    assert tuple(json.loads(metadata["classes"])) == CLASSES
    assert json.loads(metadata["model"])["width"] == classifier.encoder.config.width


def test_bad_requests_are_one_sentence(weights, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"out=.*e: must end in \.onnx"):
        export_onnx(weights, tmp_path / "e")
    (tmp_path / "e.onnx").write_text("")
    with pytest.raises(ConfigError, match=r"e\.onnx: exists"):
        export_onnx(weights, tmp_path / "e.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"to=onnx: .* pip install 'tats-fast\[onnx\]'"):
        export_onnx(weights, tmp_path / "f.onnx")
