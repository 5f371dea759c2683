"""The public functions, the export command, and every snippet of docs/api.md."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import torch
from classifiers_exchanged import make_classifier, write_fine_tuned
from data_files import write_video
from models_exchanged import random_clip, randomize, write_run
from project import ROOT, TINY_MODEL

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError
from tats_fast.models import MaskedAutoencoder, TokenSplit
from tats_fast.models.patchify import patchify
from tats_fast.models.restore import load_models


@pytest.fixture
def mae(tmp_path) -> MaskedAutoencoder:
    model = randomize(tats_fast.create_model("vit_tiny", **TINY_MODEL), std=0.1)
    write_run(tmp_path / "runs" / "my_run", model, step=500)
    return model


def test_documented_snippets_run(mae, tmp_path, monkeypatch):
    write_fine_tuned(tmp_path / "runs" / "my_finetuned_run", make_classifier(TINY_MODEL))
    write_video(tmp_path / "clip.mp4", 20)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "api.md").read_text()
    names: dict = {}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 14
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "docs/api.md", "exec"), names)
        else:
            program, *arguments = shlex.split(block)
            assert program == "tats-fast" and main(arguments) == 0


def test_encoder_equals_the_autoencoders(mae, tmp_path):
    clips, video = random_clip(TINY_MODEL)
    patches = patchify(clips, mae.config.tubelet_size, mae.config.patch_size)
    tokens = mae.config.num_tokens
    order = torch.arange(tokens).expand(2, -1)
    everything = TokenSplit(order=order, count=tokens, length=tokens)
    run = tmp_path / "runs" / "my_run"
    checkpoint = run / "checkpoints" / "step_000500"
    with torch.no_grad():
        expected = mae.encode(mae.embed(patches), everything)
        for path in (run, checkpoint, checkpoint / "model.safetensors", str(run)):
            encoder = tats_fast.load_encoder(path)
            assert not encoder.training
            torch.testing.assert_close(encoder(video), expected, rtol=1e-5, atol=1e-5)


def test_newest_checkpoint_of_a_run_counts(mae, tmp_path):
    run = tmp_path / "runs" / "my_run"
    newer = randomize(tats_fast.create_model(**TINY_MODEL))
    write_run(run, newer, step=1000)
    weight = tats_fast.load_encoder(run).embed.proj.weight
    assert torch.equal(weight, newer.encoder.embed.proj.weight)


def test_encoder_can_be_trained(mae, tmp_path):
    encoder = tats_fast.load_encoder(tmp_path / "runs" / "my_run").train()
    encoder(random_clip(TINY_MODEL)[1]).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 32, 32), (2, 8, 3, 32, 32), (3, 8, 32, 32), (2, 3, 8, 32, 40)]
)
def test_a_video_of_another_shape_is_refused(mae, tmp_path, shape):
    encoder = tats_fast.load_encoder(tmp_path / "runs" / "my_run")
    with pytest.raises(ValueError, match=r"expected \(B, 3, 8, 32, 32\)"):
        encoder.forward_features(torch.zeros(shape))


def test_bad_requests_are_one_sentence(mae, tmp_path):
    run = tmp_path / "runs" / "my_run"
    for call, part in (
        (lambda: tats_fast.load_encoder(tmp_path / "nothing"), "load_encoder="),
        (lambda: tats_fast.load_encoder(run, width=16), "model.width=16"),
        (lambda: tats_fast.load_classifier(run), "fine-tune it first"),
        (lambda: tats_fast.load_classifier(tmp_path / "nothing"), "load_classifier="),
        (lambda: tats_fast.load_encoder(run, image_size=33), "for example 32"),
        (lambda: tats_fast.create_model("vit_bas"), "did you mean vit_base"),
        (lambda: tats_fast.create_model("vit_tiny", widht=3), "did you mean model.width"),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert part in str(error.value) and "\n" not in str(error.value)


def test_attention_of_the_training_does_not_bind(tmp_path):
    """A run on a GPU with FlashAttention gives features on any machine."""
    model = tats_fast.create_model(**TINY_MODEL)
    write_run(tmp_path / "run", model)
    file = next((tmp_path / "run").rglob("config.yaml"))
    file.write_text(file.read_text().replace("attention: auto", "attention: flash4", 1))
    assert tats_fast.load_encoder(tmp_path / "run").config.attention == "auto"


def test_imported_folder_is_a_checkpoint(mae, tmp_path):
    run, out = str(tmp_path / "runs" / "my_run"), str(tmp_path / "folder")
    assert main(["import", "--from", run, "--out", out]) == 0
    config, copy, sampler = load_models(out)
    assert sampler is None and config.model == mae.config
    assert torch.equal(copy.head.weight, mae.head.weight)


def test_export_refuses_to_overwrite(mae, tmp_path, capsys):
    command = ["export", "--checkpoint", str(tmp_path / "runs" / "my_run"), "--to", "huggingface"]
    out = tmp_path / "exported"
    out.mkdir()
    assert main([*command, "--out", str(out)]) == 0
    before = {file: file.read_bytes() for file in out.iterdir()}
    assert main([*command, "--out", str(out)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in out.iterdir()}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".writing")] == []


def test_names_are_lazy():
    code = """
import sys, tats_fast
assert 'torch' not in sys.modules
assert {'load_encoder', 'load_classifier', 'create_model'} <= set(tats_fast.__all__)
from tats_fast import load_encoder
assert 'torch' in sys.modules and 'transformers' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
    with pytest.raises(AttributeError, match="no_such_name"):
        tats_fast.no_such_name  # noqa: B018
