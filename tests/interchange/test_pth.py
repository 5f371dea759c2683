"""The original code's ``.pth`` files, with Transformers' model as the judge of their outputs.

The tensors are renamed here by hand and not through our tables, which this tests.
"""

from __future__ import annotations

import argparse
import pickle

import pytest
import torch
from models_exchanged import (
    GIVEN,
    SIZES,
    assert_close,
    compare_pretraining,
    frames_first,
    original_classifier_state,
    original_state,
    random_clip,
    randomize,
    transformers_config,
)
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError
from tats_fast.config.reading import build_model_config
from tats_fast.interchange import read_weights, save_weights
from tats_fast.models import MaskedAutoencoder
from tats_fast.models.layers import sincos_positions


@pytest.fixture
def pretrained():
    model = randomize(VideoMAEForPreTraining(transformers_config("plain")))
    return model, original_state(model)


@pytest.fixture
def fine_tuned():
    config = transformers_config("plain", use_mean_pooling=True, num_labels=5)
    model = randomize(VideoMAEForVideoClassification(config))
    return model, original_classifier_state(model)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def compiled_blocks(state):
    return {name.replace("blocks.1.", "blocks.1._orig_mod."): t for name, t in state.items()}


def adamae(state):
    """Its sampler: own positions, a block without query and value biases, a linear map."""
    block = {
        n: t for n, t in state.items() if n.startswith("encoder.blocks.0.") and "_bias" not in n
    }
    sampler = {n.replace("blocks.0.", "get_token_probs.0."): t for n, t in block.items()}
    sampler["encoder.get_token_probs.1.weight"] = torch.ones(1, 24)
    sampler["encoder.pos_embed_probs"] = torch.ones(1, 32, 24)
    return {**state, **sampler}


LAYOUTS = {
    "VideoMAE": lambda s: {
        "model": s,
        "optimizer": {"state": {}},
        "epoch": 799,
        "args": argparse.Namespace(lr=1.5e-4, window_size=(8, 14, 14), output_dir="out"),
    },
    "VideoMAEv2_deepspeed": lambda s: {"module": prefixed(s, "module."), "ds_config": {}},
    "bare_compiled": lambda s: prefixed(s, "_orig_mod."),
    "ddp_compiled": lambda s: {"model": prefixed(compiled_blocks(s), "module._orig_mod.")},
    "AdaMAE": lambda s: {"model": prefixed(adamae(s), "module.")},
    "fixed_table": lambda s: {"model": {**s, "encoder.pos_embed": sincos_positions(32, 24)[None]}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretrained_layouts_give_the_same_outputs(tmp_path, pretrained, layout):
    theirs, state = pretrained
    torch.save(LAYOUTS[layout](state), tmp_path / "theirs.pth")
    weights = read_weights(tmp_path / "theirs.pth", GIVEN)
    assert any("sampler" in note for note in weights.notes) == (layout == "AdaMAE")
    weights = read_weights(save_weights(weights, tmp_path / "imported.safetensors"))
    mae = MaskedAutoencoder(weights.model).eval()
    mae.load_state_dict(weights.state)
    compare_pretraining(mae, theirs)
    _, video = random_clip(SIZES["plain"])
    with torch.no_grad():
        expected = theirs.videomae(frames_first(video)).last_hidden_state
        encoder = tats_fast.load_encoder(tmp_path / "theirs.pth", **GIVEN)
        assert_close(encoder.forward_features(video), expected)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_fine_tuned_layout_gives_the_same_outputs(tmp_path, fine_tuned, prefix):
    theirs, state = fine_tuned
    torch.save({"module": prefixed(state, prefix)}, tmp_path / "theirs.pth")
    weights = read_weights(tmp_path / "theirs.pth", GIVEN)
    assert not weights.has_decoder and not weights.final_norm and not weights.notes
    saved = save_weights(weights, tmp_path / "imported.safetensors")
    _, video = random_clip(SIZES["plain"])
    with torch.no_grad():
        expected = theirs.videomae(frames_first(video)).last_hidden_state
        assert_close(tats_fast.load_encoder(saved).forward_features(video), expected)


def test_half_precision_becomes_fp32(tmp_path, pretrained):
    _, state = pretrained
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "half.pth")
    weights = read_weights(tmp_path / "half.pth", GIVEN)
    assert {t.dtype for t in weights.state.values()} == {torch.float32}


GIANT = {
    **{"hidden_size": 1408, "num_attention_heads": 16, "intermediate_size": 6144},
    **{"decoder_hidden_size": 512, "decoder_num_attention_heads": 8, "patch_size": 14},
    "decoder_intermediate_size": 2234,
}


@pytest.mark.parametrize(
    ("sizes", "expected"), [({}, (12, 6, 1568)), (GIANT, (16, 8, 2048))], ids=["ViT-B", "ViT-g"]
)
def test_published_widths_need_no_heads(tmp_path, sizes, expected):
    """Their widths with one block each, 16 frames of 224 pixels, is all that a file says."""
    config = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "use_mean_pooling": False}
    with torch.device("meta"):
        model = VideoMAEForPreTraining(type(transformers_config("plain"))(**config, **sizes))
    state = {k: torch.zeros(v.shape) for k, v in original_state(model).items()}
    torch.save({"model": state}, tmp_path / "theirs.pth")
    model = read_weights(tmp_path / "theirs.pth").model
    assert (model.heads, model.decoder_heads, model.num_tokens) == expected
    assert (
        model.mlp_ratio
        == build_model_config({"preset": "vit_giant" if sizes else "vit_base"}).mlp_ratio
    )


def refusal(path, **given) -> str:
    with pytest.raises(ConfigError) as error:
        read_weights(path, {**GIVEN, **given})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s.pop("encoder.blocks.0.attn.q_bias"), "lacks encoder.blocks.0.attn.q_bias"),
        (lambda s: s.pop("encoder.norm.weight"), "lacks encoder.norm.weight"),
        (
            lambda s: s.update({f"encoder.blocks.{i}.gamma_1": torch.ones(24) for i in range(2)}),
            "holds the unknown encoder.blocks.0.gamma_1, encoder.blocks.1.gamma_1",
        ),
        (lambda s: s.update({f"extra.{i}": torch.ones(1) for i in range(9)}), "(9 tensors)"),
        (lambda s: s.pop("encoder.patch_embed.proj.weight"), "no 5-D patch_embed.proj.weight"),
        (
            lambda s: s.update({"encoder.pos_embed": torch.randn(1, 32, 24)}),
            "encoder.pos_embed holds learned positions",
        ),
        (
            lambda s: s.update({"encoder.norm.bias": torch.ones(7)}),
            "has shape (7,), expected (24,)",
        ),
        (lambda s: s.update({"module.mask_token": torch.ones(1)}), "mask_token appears twice"),
        (lambda s: s.update({"lr": 0.1}), "lr is not a tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_tensors_are_refused_by_name(tmp_path, pretrained, change, part):
    _, state = pretrained
    change(state)
    torch.save(state, tmp_path / "theirs.pth")
    assert part in refusal(tmp_path / "theirs.pth")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s.pop("head.weight"), "lacks encoder.head.weight"),
        (lambda s: [s.pop("fc_norm.weight"), s.pop("fc_norm.bias")], "lacks encoder.fc_norm.bias"),
        (lambda s: s.pop("fc_norm.weight"), "lacks encoder.fc_norm.weight"),
        (lambda s: s.update({"head.extra": torch.ones(1)}), "unknown encoder.head.extra"),
        (lambda s: s.update({"norm.bias": torch.ones(24)}), "unknown encoder.norm.bias"),
    ],
)
def test_other_heads_are_refused_by_name(tmp_path, fine_tuned, change, part):
    _, state = fine_tuned
    change(state)
    torch.save(state, tmp_path / "theirs.pth")
    assert part in refusal(tmp_path / "theirs.pth")


def test_a_head_on_the_first_token_is_left_out(tmp_path, fine_tuned):
    """Without mean pooling the original code has `norm` and no `fc_norm`."""
    state = {name.replace("fc_norm.", "norm."): tensor for name, tensor in fine_tuned[1].items()}
    torch.save(state, tmp_path / "theirs.pth")
    weights = read_weights(tmp_path / "theirs.pth", GIVEN)
    assert weights.final_norm and weights.head is None
    assert "first token alone (encoder.head.bias, encoder.head.weight)" in weights.notes[0]


def test_a_norm_without_classifier_leaves_an_encoder(tmp_path, fine_tuned):
    state = {name: tensor for name, tensor in fine_tuned[1].items() if "head." not in name}
    torch.save(state, tmp_path / "theirs.pth")
    weights = read_weights(tmp_path / "theirs.pth", GIVEN)
    assert weights.head is None and not weights.final_norm
    assert weights.notes == (
        "a norm was left out: no classifier follows it "
        "(encoder.fc_norm.bias, encoder.fc_norm.weight)",
    )


def test_overrides_must_not_contradict_the_weights(tmp_path, pretrained):
    torch.save(pretrained[1], tmp_path / "theirs.pth")
    assert "model.width=32" in refusal(tmp_path / "theirs.pth", width=32)
    assert "model.heads=5" in refusal(tmp_path / "theirs.pth", heads=5)
    with pytest.raises(ConfigError, match=r"add model\.heads=N"):
        read_weights(tmp_path / "theirs.pth")
    weights = read_weights(tmp_path / "theirs.pth", GIVEN)
    saved = save_weights(weights, tmp_path / "imported.safetensors")
    with pytest.raises(ConfigError, match=r"model\.heads=2"):
        read_weights(saved, {"heads": 2})


class Payload:
    """What a hostile file looks like: reading it would write another one."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_unsafe_pickles_are_refused_and_not_run(tmp_path, pretrained):
    touched = tmp_path / "touched"
    content = {"model": pretrained[1], "args": Payload(str(touched))}
    torch.save(content, tmp_path / "hostile.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"args": Payload(str(touched))}))
    for name in ("hostile.pth", "old.pth"):
        touched.unlink(missing_ok=True)
        message = refusal(tmp_path / name)
        assert "refused" in message and "run code" in message
        assert not touched.exists()


def test_damaged_and_missing_files_are_one_sentence(tmp_path, pretrained):
    torch.save(pretrained[1], tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    assert "cut.pth" in refusal(tmp_path / "cut.pth")
    for name, content in (("text", b"hello\n"), ("page", b"<!DOCTYPE html>"), ("json", b"{}")):
        (tmp_path / f"{name}.pth").write_bytes(content)
        assert refusal(tmp_path / f"{name}.pth").endswith(": no file of torch.save")
    (tmp_path / "empty.pth").touch()
    assert refusal(tmp_path / "empty.pth").endswith(": empty")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds a list" in refusal(tmp_path / "list.pth")
    nothing = tmp_path / "nothing"
    assert "neither a checkpoint folder (it would hold model.safetensors)" in refusal(nothing)


def test_command_line_imports_and_refuses(tmp_path, pretrained, capsys):
    theirs, state = pretrained
    torch.save({"model": adamae(state)}, tmp_path / "theirs.pth")
    given = [f"model.{key}={value}" for key, value in GIVEN.items()]
    command = ["import", "--from", str(tmp_path / "theirs.pth"), "--out"]
    assert main([*command, str(tmp_path / "imported.safetensors"), *given]) == 0
    assert "encoder and decoder" in capsys.readouterr().out
    _, video = random_clip(SIZES["plain"])
    with torch.no_grad():
        expected = theirs.videomae(frames_first(video)).last_hidden_state
        assert_close(tats_fast.load_encoder(tmp_path / "imported.safetensors")(video), expected)
    for arguments, part in (
        ([str(tmp_path / "imported.safetensors"), *given], "exists"),
        ([str(tmp_path / "other.safetensors")], "add model.heads=N"),
        ([str(tmp_path / "other.safetensors"), "train.steps=3"], "only model.*"),
    ):
        assert main([*command, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and part in error and error.count("\n") == 1
