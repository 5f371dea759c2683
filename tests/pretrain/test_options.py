"""``train.init_from`` and ``eval.probe_every`` of pretraining."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from labelled_files import NAMES, write_labelled
from models_exchanged import randomize, write_run
from project import TINY_MODEL
from run_checks import assert_identical, weights

import tats_fast
from tats_fast.config import ConfigError
from tats_fast.data.lists import read_videos
from tats_fast.engine.distributed import World
from tats_fast.interchange import Weights, save_weights
from tats_fast.pretrain.trainer import Trainer
from tats_fast.recognition.features import FeatureSettings
from tats_fast.recognition.probe import probe_model

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def source(tmp_path):
    """A run with random, non-zero weights everywhere."""
    mae = randomize(tats_fast.create_model("vit_tiny", **TINY_MODEL))
    write_run(tmp_path / "source", mae)
    return mae, tmp_path / "source"


def test_pretraining_starts_from_given_weights(run_config, source):
    mae, folder = source
    made = Trainer(run_config(train={"init_from": str(folder)}), CPU).learner.mae
    assert_identical(made.state_dict(), mae.state_dict())


def encoder_of(mae):
    return {name: t for name, t in mae.state_dict().items() if name.startswith("encoder.")}


def test_an_encoder_alone_leaves_the_decoder_fresh(run_config, source, tmp_path, caplog):
    mae, _ = source
    path = tmp_path / "encoder.safetensors"
    save_weights(Weights(model=mae.config, state=encoder_of(mae)), path)
    with caplog.at_level(logging.INFO, "tats_fast"):
        made = Trainer(run_config(train={"init_from": str(path)}), CPU).learner.mae
    fresh = Trainer(run_config(), CPU).learner.mae.state_dict()
    for name, value in made.state_dict().items():
        expected = mae.state_dict() if name in encoder_of(mae) else fresh
        assert torch.equal(value, expected[name]), name
    assert "took the encoder, but no decoder (not in it), no sampler (not in it)" in caplog.text


def test_a_resumed_run_does_not_start_again(run_config, source, tmp_path):
    _, folder = source
    config = run_config(train={"init_from": str(folder)})
    Trainer(config, CPU).run()
    expected = weights(tmp_path / "run", 6)["model"]["mae"]
    shutil.rmtree(folder)  # nor does it need them any more
    again = Trainer(config, CPU)
    assert again.position.step == 6
    assert_identical(dict(again.learner.mae.state_dict()), expected)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ({"heads": 4}, "model.heads=4: train.init_from="),  # shows in no tensor's shape
        ({"positions": "space_time"}, "model.positions=space_time"),
        ({"depth": 3}, "model.depth=3"),
        ({"mlp_ratio": 2.0}, "model.mlp_ratio=2.0"),
    ],
)
def test_another_model_is_refused(run_config, source, model, part):
    _, folder = source
    with pytest.raises(ConfigError) as caught:
        Trainer(run_config(model=model, train={"init_from": str(folder)}), CPU)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def lists(demo_clips, tmp_path):
    return write_labelled(demo_clips, tmp_path / "labelled")


def probing(lists, **more):
    return {"probe_train": str(lists[0]), "probe_eval": str(lists[1]), **more}


@pytest.mark.slow
def test_probes_while_training(run_config, lists, tmp_path):
    """Every pass and at the end, equal to the probe of that checkpoint, and training as without."""
    train = {"steps": 14, "checkpoint_every": 7}
    kinds = ["linear", "knn", "attentive"]
    plain = run_config("plain", train=train)
    Trainer(plain, CPU).run()
    settings = probing(lists, probe_every=1, probe_kinds=kinds)
    probed = run_config("probed", train=train, eval=settings)
    Trainer(probed, CPU).run()
    assert_identical(weights(tmp_path / "plain", 14), weights(tmp_path / "probed", 14))
    rows = [json.loads(x) for x in (tmp_path / "probed" / "eval.jsonl").read_text().splitlines()]
    # 24 videos: the first pass ends within step 6, the second with step 12.
    assert [row["step"] for row in rows] == [6, 12, 14]
    report = probe_model(
        tats_fast.load_encoder(tmp_path / "probed"),
        *(read_videos(path) for path in lists),
        kinds=kinds,
        settings=FeatureSettings(stride=1),
    )
    for result in report.results:
        assert rows[-1][f"probe_{result.kind}"] == result.top1
    assert report.classes == sorted(NAMES)


def test_odd_labels_are_spoken_of_once(run_config, lists, tmp_path, caplog):
    for path in lists:
        (tmp_path / path.name).write_text(path.read_text().replace(f"\t{NAMES[0]}", "\t-1"))
    settings = probing([tmp_path / path.name for path in lists], probe_every=1, probe_kinds=["knn"])
    Trainer(run_config(train={"steps": 14}, eval=settings), CPU).run()
    rows = (tmp_path / "run" / "eval.jsonl").read_text().splitlines()
    assert len([row for row in rows if "probe_knn" in row]) > 1
    warnings = [record.getMessage() for record in caplog.records]
    odd = [line for line in warnings if "-1 is taken as the name of a class" in line]
    assert len(odd) == 1 and odd[0].startswith("eval.probe_train: ")


def test_probing_needs_lists_with_labels(run_config, lists, demo_clips):
    with pytest.raises(ConfigError, match=r"eval\.probe_train=None: probing needs a list"):
        run_config(eval={"probe_every": 1})
    with pytest.raises(ConfigError, match=r"eval\.probe_kinds=svm: must be one of linear"):
        run_config(eval=probing(lists, probe_every=1, probe_kinds=["svm"]))
    unlabelled = probing((demo_clips, lists[1]), probe_every=1)
    with pytest.raises(ConfigError, match=r"eval\.probe_train: .* has no label"):
        Trainer(run_config(eval=unlabelled), CPU)
