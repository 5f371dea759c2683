"""Ours to Transformers and back, judged by outputs: shapes and names prove nothing about values."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from models_exchanged import (
    SIZES,
    assert_close,
    compare_pretraining,
    edited,
    frames_first,
    model_fields,
    model_tree,
    pil_processor,
    random_clip,
    randomize,
    read_run,
    transformers_config,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)

import tats_fast
from tats_fast.config import ConfigError
from tats_fast.config.reading import build_config
from tats_fast.config.sampling import Sampling
from tats_fast.interchange import export_hugging_face, read_weights, save_weights
from tats_fast.interchange.foreign import mlp_ratio
from tats_fast.models import MaskedAutoencoder
from tats_fast.models.patchify import IMAGENET_MEAN, IMAGENET_STD
from tats_fast.models.restore import load_models

sizes = pytest.mark.parametrize("size", SIZES)


@pytest.fixture
def make_export(tmp_path):
    def make(size: str, **model):
        mae = MaskedAutoencoder(build_config({"model": {**model_tree(size), **model}}).model)
        randomize(mae)
        return mae, export_hugging_face(read_run(mae, tmp_path / "run"), tmp_path / "exported")

    return make


@sizes
def test_export_gives_transformers_the_same_outputs(make_export, size):
    mae, folder = make_export(size)
    theirs, report = VideoMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    compare_pretraining(mae, theirs.eval())
    _, video = random_clip(model_fields(mae))
    with torch.no_grad():
        expected = VideoMAEModel.from_pretrained(folder).eval()(frames_first(video))
        features = tats_fast.load_encoder(folder.parent / "run").forward_features(video)
    assert_close(features, expected.last_hidden_state)


@sizes
@pytest.mark.parametrize("eps", [1e-6, 1e-12])
def test_import_gives_us_the_same_features(tmp_path, size, eps):
    # Weights this small make the tokens' variance small too, and the epsilon visible.
    std = 0.2 if eps == 1e-6 else 0.003
    theirs = randomize(VideoMAEModel(transformers_config(size, layer_norm_eps=eps)), std)
    for name, parameter in theirs.named_parameters():
        if "layernorm" in name:
            parameter.data.normal_(std=1.0)
    theirs.save_pretrained(tmp_path / "theirs")
    saved = save_weights(read_weights(tmp_path / "theirs"), tmp_path / "imported.safetensors")
    _, video = random_clip(SIZES[size])
    with torch.no_grad():
        expected = theirs(frames_first(video)).last_hidden_state
        for path in (tmp_path / "theirs", saved):
            assert_close(tats_fast.load_encoder(path).forward_features(video), expected)


@sizes
def test_import_gives_us_the_same_reconstruction(tmp_path, size):
    theirs = randomize(VideoMAEForPreTraining(transformers_config(size)))
    theirs.save_pretrained(tmp_path / "theirs")
    for out in ("imported.safetensors", "folder"):
        weights = read_weights(save_weights(read_weights(tmp_path / "theirs"), tmp_path / out))
        assert weights.has_decoder
        mae = MaskedAutoencoder(weights.model).eval()
        mae.load_state_dict(weights.state)
        compare_pretraining(mae, theirs)


@pytest.mark.parametrize(("stride", "fps"), [(1, None), (0, None), (None, 7.5)])
def test_the_folder_of_an_import_knows_its_frames(make_export, tmp_path, stride, fps):
    """A page of it cuts its clips so."""
    _, folder = make_export("plain")
    sampling = Sampling(stride=stride, fps=fps)
    weights = dataclasses.replace(read_weights(folder), sampling=sampling, run=None)
    data = load_models(save_weights(weights, tmp_path / "folder"))[0].data
    # Pretraining has no segments.
    assert (data.stride, data.fps) == ((stride or 4, None) if fps is None else (None, fps))


def test_only_the_decoders_last_norm_can_differ(make_export):
    """Transformers fixes its epsilon at 1e-5, which tells where the decoder's tokens are small."""
    mae, folder = make_export("plain")
    theirs = VideoMAEForPreTraining.from_pretrained(folder).eval()
    for name in ("to_decoder", "decoder"):
        randomize(getattr(mae, name), std=0.003)
    mae.decoder_positions.mul_(0.003)
    theirs.position_embeddings = mae.decoder_positions[None]
    small = export_hugging_face(read_run(mae, folder.parent / "small"), folder.parent / "again")
    theirs.load_state_dict(VideoMAEForPreTraining.from_pretrained(small).state_dict())
    with pytest.raises(AssertionError):
        compare_pretraining(mae, theirs)
    theirs.decoder.norm.eps = 1e-6
    compare_pretraining(mae, theirs)


def test_there_and_back_changes_no_bit(make_export):
    mae, folder = make_export("plain")
    back = read_weights(folder)
    assert back.model == mae.config
    assert back.state.keys() == mae.state_dict().keys()
    for name, tensor in mae.state_dict().items():
        assert torch.equal(back.state[name], tensor), name


@pytest.mark.parametrize("bias", ["q_bias", "v_bias"])
def test_biases_matter_and_arrive(make_export, bias):
    """Were a bias lost on either way, these outputs would agree."""
    _, folder = make_export("plain")
    _, video = random_clip(SIZES["plain"])
    path = folder / "model.safetensors"
    state = load_file(path)
    word = {"q_bias": "query.bias", "v_bias": "value.bias"}[bias]
    changed = {k: torch.zeros_like(v) if k.endswith((bias, word)) else v for k, v in state.items()}
    features = []
    for tensors in (state, changed):
        save_file(tensors, path, metadata={"format": "pt"})
        with torch.no_grad():
            features.append(tats_fast.load_encoder(folder).forward_features(video))
    assert (features[0] - features[1]).abs().max() > 1e-4


@pytest.mark.parametrize("gone", [("q_bias", "v_bias"), ("query.bias", "value.bias")])
def test_biases_are_stored_under_both_names_and_either_is_enough(make_export, gone):
    """Release 4 of Transformers knows the first pair, early releases 5 the second, silently."""
    mae, folder = make_export("plain")
    path = folder / "model.safetensors"
    state = load_file(path)
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(gone)}
    assert len(state) - len(kept) == 2 * (mae.config.depth + mae.config.decoder_depth)
    save_file(kept, path, metadata={"format": "pt"})
    theirs, report = VideoMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    compare_pretraining(mae, theirs.eval())
    back = read_weights(folder).state
    assert all(torch.equal(back[name], tensor) for name, tensor in mae.state_dict().items())


def test_key_biases_change_nothing(make_export):
    """Early releases 5 have and save them. Here they are put where Transformers' keys come from."""
    mae, folder = make_export("plain")
    _, video = random_clip(SIZES["plain"])
    theirs = VideoMAEModel.from_pretrained(folder).eval()
    biases = {}
    for i, layer in enumerate(theirs.encoder.layer):
        key = layer.attention.attention.key
        key.bias = nn.Parameter(torch.randn(mae.config.width))
        biases[f"videomae.encoder.layer.{i}.attention.attention.key.bias"] = key.bias.detach()
    edited(folder, lambda state: state.update(biases))
    with torch.no_grad():
        expected = theirs(frames_first(video)).last_hidden_state
        assert_close(tats_fast.load_encoder(folder).forward_features(video), expected)


def test_a_model_without_biases(tmp_path):
    theirs = randomize(VideoMAEModel(transformers_config("plain", qv_bias=False)))
    theirs.save_pretrained(tmp_path / "theirs")
    _, video = random_clip(SIZES["plain"])
    with torch.no_grad():
        expected = theirs(frames_first(video)).last_hidden_state
        assert_close(tats_fast.load_encoder(tmp_path / "theirs").forward_features(video), expected)


def test_mean_pooling_models_end_without_a_norm(tmp_path):
    """VideoMAEModel leaves its last norm out then: the classifier norms the mean instead."""
    config = transformers_config("plain", use_mean_pooling=True, num_labels=5)
    theirs = randomize(VideoMAEForVideoClassification(config))
    theirs.save_pretrained(tmp_path / "theirs")
    weights = read_weights(tmp_path / "theirs")
    assert not weights.final_norm and not weights.has_decoder
    assert len(weights.classes) == 5 and not weights.notes
    _, video = random_clip(SIZES["plain"])
    with torch.no_grad():
        expected = theirs.videomae(frames_first(video)).last_hidden_state
        assert_close(tats_fast.load_encoder(tmp_path / "theirs").forward_features(video), expected)
    again = export_hugging_face(weights, tmp_path / "again")
    with torch.no_grad():
        back = VideoMAEModel.from_pretrained(again).eval()(frames_first(video)).last_hidden_state
    assert torch.equal(back, expected)
    with pytest.raises(ConfigError, match="no decoder for a checkpoint folder"):
        save_weights(weights, tmp_path / "folder")


def test_a_decoder_on_unnormed_tokens_is_left_out(tmp_path):
    config = transformers_config("plain", use_mean_pooling=True)
    VideoMAEForPreTraining(config).save_pretrained(tmp_path / "theirs")
    weights = read_weights(tmp_path / "theirs")
    assert not weights.has_decoder and "use_mean_pooling" in weights.notes[0]


def test_classification_loads_the_export(make_export):
    _, folder = make_export("plain")
    _, video = random_clip(SIZES["plain"])
    encoder = tats_fast.load_encoder(folder.parent / "run")
    plain = VideoMAEForVideoClassification.from_pretrained(folder, num_labels=3).eval()
    pooled = VideoMAEForVideoClassification.from_pretrained(
        folder, num_labels=3, use_mean_pooling=True
    ).eval()
    with torch.no_grad():
        features = encoder(video)
        assert_close(plain.classifier(features[:, 0]), plain(frames_first(video)).logits)
        encoder.norm = nn.Identity()
        mean = pooled.fc_norm(encoder(video).mean(1))
        assert_close(pooled.classifier(mean), pooled(frames_first(video)).logits)


def test_config_says_what_defaults_do_not(make_export):
    _, folder = make_export("odd_mlp")
    config = json.loads((folder / "config.json").read_text())
    assert config["layer_norm_eps"] == 1e-6 and config["use_mean_pooling"] is False
    assert config["qkv_bias"] is True and config["norm_pix_loss"] is True
    assert config["intermediate_size"] == 192  # 44 * 48 / 11
    assert VideoMAEConfig.from_pretrained(folder).qv_bias is True


def test_image_processor_prepares_what_the_encoder_takes(make_export):
    _, folder = make_export("plain")
    frames = [torch.randint(0, 256, (40, 56, 3), dtype=torch.uint8).numpy() for _ in range(4)]
    processor = pil_processor(folder)
    pixels = processor(frames, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 4, 3, 32, 32)
    assert processor.size["shortest_edge"] == 32
    # Without resizing the values are the normalised pixels of the centre.
    exact = processor(frames, return_tensors="pt", do_resize=False).pixel_values[0, 0]
    centre = torch.from_numpy(frames[0])[4:36, 12:44] / 255
    expected = (centre - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(exact, expected.permute(2, 0, 1), rtol=0, atol=1e-5)


def test_model_card_tells_how_it_was_trained(make_export):
    _, folder = make_export("plain")
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    for part in ("| masking.strategy | random |", "| steps done | 3 |", "use_mean_pooling=True"):
        assert part in text
    assert "{" not in text and str(folder.parent) not in text


@pytest.mark.parametrize(("image_size", "num_frames"), [(48, 4), (32, 10), (16, 2)])
def test_other_clip_sizes_compute_positions_anew(make_export, image_size, num_frames):
    _, folder = make_export("plain")
    other = {"image_size": image_size, "num_frames": num_frames}
    _, video = random_clip(other)
    with torch.no_grad():
        expected = VideoMAEModel.from_pretrained(folder, **other).eval()(frames_first(video))
        for path in (folder, folder.parent / "run"):
            features = tats_fast.load_encoder(path, **other).forward_features(video)
            assert_close(features, expected.last_hidden_state)


def test_space_time_positions_cannot_be_exported(make_export):
    with pytest.raises(ConfigError, match="flat positions only"):
        make_export("plain", positions="space_time")


ATTENTION = "videomae.encoder.layer.1.attention.attention."


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda s: [s.pop(k) for k in list(s) if k.startswith(ATTENTION + "q")],
            ["lacks", ATTENTION + "q_bias, ", ATTENTION + "query.weight"],
        ),
        (
            lambda s: s.update({"videomae.extra": torch.ones(1)}),
            ["holds the unknown videomae.extra"],
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if "videomae.encoder.layer.1" in k],
            ["lacks", "and 12 more (15 tensors)"],
        ),
        (
            lambda s: s.update({"videomae.layernorm.bias": torch.ones(7)}),
            ["encoder.norm.bias has shape (7,), expected (24,)"],
        ),
        (
            lambda s: s.update({ATTENTION + "value.bias": torch.ones(24)}),
            [ATTENTION + "v_bias appears under two names with different values"],
        ),
    ],
    ids=["missing", "unknown", "block", "shape", "twice"],
)
def test_wrong_tensors_are_refused_by_name(make_export, change, parts):
    _, folder = make_export("plain")
    edited(folder, change)
    with pytest.raises(ConfigError) as error:
        read_weights(folder)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "vit"),
        ("hidden_act", "relu"),
        ("num_channels", 1),
        ("image_size", [32, 64]),
        ("decoder_intermediate_size", 40),
    ],
)
def test_models_that_ours_cannot_express_are_refused(make_export, field, value):
    _, folder = make_export("plain")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ConfigError, match=field):
        read_weights(folder)


def test_an_export_is_no_checkpoint(make_export):
    """Though its weights have the same file name."""
    _, folder = make_export("plain")
    with pytest.raises(ConfigError, match=r"another of ours; tats-fast import"):
        load_models(folder)


def test_mlp_ratio_survives_rounding():
    for width in (12, 44, 192, 384, 768, 1408):
        for hidden in (width, 4 * width, 6144, 1001, 3073):
            assert int(width * mlp_ratio(width, hidden)) == hidden
