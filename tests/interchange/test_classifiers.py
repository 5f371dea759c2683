"""Classifiers there and back, judged by logits: ours, Transformers' and the original code's.

Every parameter is random, biases and norms included. Features are small in half of the cases: an
epsilon of 1e-6 where 1e-5 belongs in the head, or where 1e-3 belongs in the encoder, then changes
logits by far more than the tolerance.
"""

from __future__ import annotations

import json

import pytest
import torch
from classifiers_exchanged import (
    CLASSES,
    from_transformers,
    logits,
    make_classifier,
    same_positions,
    theirs_for,
    write_fine_tuned,
)
from models_exchanged import (
    GIVEN,
    SIZES,
    assert_close,
    edited,
    model_tree,
    original_classifier_state,
    random_clip,
    transformers_config,
)
from safetensors.torch import load_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import tats_fast
from tats_fast.config import ConfigError
from tats_fast.interchange import (
    Weights,
    build_classifier,
    export_hugging_face,
    read_weights,
    save_weights,
)
from tats_fast.weights_file import VALUES, read_state, write_state, write_tensors

sizes = pytest.mark.parametrize("size", SIZES)
deviations = pytest.mark.parametrize("std", [0.2, 0.003])


@pytest.fixture
def run(tmp_path):
    return write_fine_tuned(tmp_path / "run", make_classifier(model_tree("plain")))


@pytest.fixture
def exported(run, tmp_path):
    return export_hugging_face(read_weights(run), tmp_path / "exported")


@sizes
@deviations
def test_ours_gives_transformers_the_same_logits(tmp_path, size, std):
    ours = make_classifier(model_tree(size), std, norm_eps=1e-3)
    run = write_fine_tuned(tmp_path / "run", ours, norm_eps=1e-3)
    theirs = from_transformers(export_hugging_face(read_weights(run), tmp_path / "exported"))
    loaded = tats_fast.load_classifier(run)
    for model in (theirs, loaded):
        same_positions(model, ours)
    _, video = random_clip(SIZES[size])
    expected = logits(ours, video)
    assert expected.std() > 0.1
    assert_close(logits(loaded, video), expected)
    assert_close(logits(theirs, video), expected)
    assert loaded.classes == CLASSES and not loaded.training
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    assert theirs.config.label2id == {name: i for i, name in enumerate(CLASSES)}


@sizes
@deviations
@pytest.mark.parametrize("eps", [1e-3, 1e-12])
def test_transformers_gives_us_the_same_logits(tmp_path, size, std, eps):
    theirs = theirs_for(size, std, layer_norm_eps=eps)
    theirs.save_pretrained(tmp_path / "theirs")
    weights = read_weights(tmp_path / "theirs")
    assert not weights.notes
    saved = save_weights(weights, tmp_path / "imported.safetensors")
    _, video = random_clip(SIZES[size])
    expected = logits(theirs, video)
    assert expected.std() > 0.1
    for path in (tmp_path / "theirs", saved):
        ours = tats_fast.load_classifier(path)
        same_positions(ours, theirs)
        assert_close(logits(ours, video), expected)
        assert ours.classes == CLASSES


@deviations
def test_the_original_code_gives_us_the_same_logits(tmp_path, std):
    """It norms the mean with 1e-6, where Transformers' class, which plays its part, has 1e-5."""
    theirs = theirs_for("plain", std)
    torch.save({"model": original_classifier_state(theirs)}, tmp_path / "theirs.pth")
    theirs.fc_norm.eps = 1e-6
    weights = read_weights(tmp_path / "theirs.pth", GIVEN)
    saved = save_weights(weights, tmp_path / "imported.safetensors")
    _, video = random_clip(SIZES["plain"])
    classifiers = (
        tats_fast.load_classifier(tmp_path / "theirs.pth", **GIVEN),
        tats_fast.load_classifier(saved),
    )
    for ours in classifiers:
        same_positions(ours, theirs)
        assert_close(logits(ours, video), logits(theirs, video))
        assert ours.classes == ("0", "1", "2", "3", "4")
    folder = export_hugging_face(weights, tmp_path / "exported")
    assert "the norm before the classifier at 1e-05" in (folder / "README.md").read_text()


def test_epsilons_would_show():
    """The tests above could not fail otherwise: ten times their tolerance."""
    ours = make_classifier(model_tree("plain"), 0.003)
    _, video = random_clip(SIZES["plain"])
    expected = logits(ours, video)
    ours.fc_norm.eps = 1e-6
    assert (logits(ours, video) - expected).abs().max() > 1e-4
    ours.fc_norm.eps = 1e-5
    for block in ours.encoder.blocks:
        block.norm1.eps = block.norm2.eps = 1e-3
    assert (logits(ours, video) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("bias", ["q_bias", "v_bias", "fc_norm.bias", "head.bias"])
def test_biases_arrive(run, exported, bias):
    """Were one lost on the way, these logits would agree."""
    _, video = random_clip(SIZES["plain"])
    ours = tats_fast.load_classifier(run)
    for name, parameter in ours.named_parameters():
        if name.endswith(bias):
            parameter.data.zero_()
    difference = logits(ours, video) - logits(from_transformers(exported), video)
    assert difference.abs().max() > 1e-4


def test_there_and_back_changes_no_bit(run, exported, tmp_path):
    saved = save_weights(read_weights(exported), tmp_path / "imported.safetensors")
    again = export_hugging_face(read_weights(saved), tmp_path / "again")
    first, second = (load_file(folder / "model.safetensors") for folder in (exported, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (exported, again)]
    for config in configs:  # of a decoder that is not there
        for name in [name for name in config if name.startswith("decoder_")]:
            del config[name]
    assert configs[0] == configs[1]
    original, back = tats_fast.load_classifier(run), tats_fast.load_classifier(saved)
    assert original.classes == back.classes
    for name, tensor in original.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "values", [{}, [], {"imported": 3, "sampler": None}, {"classes": 3, "model": {}, "norm_eps": 0}]
)
def test_weights_of_ours_without_what_they_should_hold(tmp_path, values):
    """Whatever the plain values in the file are, it is one sentence."""
    path = tmp_path / "model.safetensors"
    for section in ("classifier", "mae", "sampler"):
        write_tensors({f"{section}.a": torch.ones(1)}, path, {VALUES: json.dumps(values)})
        with pytest.raises(ConfigError, match=str(path)) as error:
            tats_fast.load_classifier(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("image_size", "num_frames"), [(48, 4), (32, 10), (16, 2)])
def test_another_clip_size_keeps_the_head(run, exported, image_size, num_frames):
    other = {"image_size": image_size, "num_frames": num_frames}
    _, video = random_clip(other)
    expected = logits(from_transformers(exported, **other), video)
    for path in (run, exported):
        ours = tats_fast.load_classifier(path, **other)
        assert_close(logits(ours, video), expected)
        assert ours.classes == CLASSES


def test_encoder_of_a_classifier(run, exported):
    """It ends without a norm, as the classifier uses it."""
    classifier = tats_fast.load_classifier(run)
    _, video = random_clip(SIZES["plain"])
    for path in (run, exported, run / "checkpoints" / "step_000100" / "model.safetensors"):
        encoder = tats_fast.load_encoder(path)
        assert isinstance(encoder.norm, torch.nn.Identity)
        with torch.no_grad():
            assert torch.equal(encoder(video), classifier.encoder(video))


def test_a_head_on_the_first_token_is_left_out(tmp_path):
    theirs_for("plain", use_mean_pooling=False).save_pretrained(tmp_path / "theirs")
    weights = read_weights(tmp_path / "theirs")
    assert weights.head is None and weights.classes == ()
    assert "first token alone (classifier.bias, classifier.weight)" in weights.notes[0]
    with pytest.raises(ConfigError, match=r"an encoder without a classifier.*first token") as e:
        tats_fast.load_classifier(tmp_path / "theirs")
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


def test_an_encoder_is_no_classifier(tmp_path):
    model = tats_fast.create_model(**model_tree("plain"))
    weights = Weights(model=model.config, state=dict(model.state_dict()))
    weights = read_weights(save_weights(weights, tmp_path / "encoder.safetensors"))
    assert weights.head is None and weights.classes == ()
    with pytest.raises(ConfigError, match="these weights: an encoder without a classifier"):
        build_classifier(weights)


def change_ours(run, change) -> None:
    path = run / "checkpoints" / "step_000100" / "model.safetensors"
    content = read_state(path)
    change(content["classifier"], content)
    write_state(content, path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s, _: s.pop("head.weight"), "head.weight is missing"),
        (lambda s, _: s.pop("head.bias"), "head.bias is missing"),
        (lambda s, _: s.pop("fc_norm.bias"), "fc_norm.bias is missing"),
        (lambda s, _: s.pop("encoder.blocks.1.attention.qkv.q_bias"), "qkv.q_bias is missing"),
        (lambda s, _: s.update({"extra.bias": torch.ones(1)}), "extra.bias is unknown"),
        (lambda s, _: s.update({"encoder.extra": torch.ones(1)}), "extra is unknown"),
        (lambda s, _: s.update({"encoder.norm.bias": torch.ones(24)}), "encoder.norm.bias"),
        (lambda s, _: s.update({"fc_norm.bias": torch.ones(7)}), "fc_norm.bias has shape (7,)"),
        (lambda s, _: s.update({"head.weight": torch.ones(5, 7)}), "head.weight has shape (5, 7)"),
        (lambda _, c: c["classes"].append("sixth"), "names 6 classes, but its classifier has 5"),
    ],
)
def test_our_checkpoint_is_refused_by_name(run, change, part):
    change_ours(run, change)
    with pytest.raises(ConfigError) as error:
        read_weights(run)
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s.pop("classifier.weight"), "lacks classifier.weight"),
        (lambda s: [s.pop("fc_norm.weight"), s.pop("fc_norm.bias")], "lacks fc_norm.bias, fc_norm"),
        (lambda s: s.update({"classifier.extra": torch.ones(1)}), "unknown classifier.extra"),
        (lambda s: s.update({"videomae.layernorm.bias": torch.ones(24)}), "unknown videomae.layer"),
        (lambda s: s.update({"classifier.weight": torch.ones(5, 7)}), "head.weight has shape"),
    ],
)
def test_their_folder_is_refused_by_name(exported, change, part):
    edited(exported, change)
    with pytest.raises(ConfigError) as error:
        read_weights(exported)
    assert part in str(error.value) and "\n" not in str(error.value)


def labelled(folder, labels: dict | None) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["id2label"], config["label2id"]
    path.write_text(json.dumps(config | ({} if labels is None else labels)))


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "names 2 classes, but its classifier has 5 outputs"),
        ({"id2label": {str(i): "a" for i in range(9)}}, "names 9 classes"),
        (None, "names 2 classes"),  # Transformers' default, and what it would fail with
        ({"id2label": {"0": "a", "2": "b"}}, "without a gap"),
        ({"id2label": {}}, "without a gap"),
        ({"id2label": ["a", "b"]}, "without a gap"),
    ],
)
def test_labels_that_do_not_fit_are_one_sentence(exported, labels, part):
    labelled(exported, labels)
    with pytest.raises(ConfigError) as error:
        read_weights(exported)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_labels_count_by_id_and_not_by_place(exported):
    labelled(exported, {"id2label": {str(i): f"class {i}" for i in (3, 1, 0, 4, 2)}})
    assert read_weights(exported).classes == tuple(f"class {i}" for i in range(5))
    labelled_ids = VideoMAEConfig.from_pretrained(exported).id2label
    assert labelled_ids == {i: f"class {i}" for i in range(5)}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_classes_without_names(tmp_path, count):
    """Transformers leaves its default of two labels out of the file."""
    theirs = VideoMAEForVideoClassification(transformers_config("plain", num_labels=count))
    theirs.config.use_mean_pooling = True
    theirs = VideoMAEForVideoClassification(theirs.config)
    theirs.save_pretrained(tmp_path / "theirs")
    assert read_weights(tmp_path / "theirs").classes == tuple(f"LABEL_{i}" for i in range(count))
    labels = {"num_labels": count}
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text())
    config.pop("id2label", None)
    path.write_text(json.dumps(config | labels))
    assert read_weights(tmp_path / "theirs").classes == tuple(f"LABEL_{i}" for i in range(count))
