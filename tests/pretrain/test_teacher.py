"""``teacher.init_from``: a frozen encoder's features as targets beside the pixels."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from models_exchanged import randomize, write_run
from project import TINY_MODEL
from run_checks import RefuseToWait, assert_identical, weights
from run_processes import finish, start
from torch.nn.functional import layer_norm
from transformers import VideoMAEConfig, VideoMAEModel

import tats_fast
from tats_fast.config import ConfigError, save_config
from tats_fast.engine.distributed import World
from tats_fast.models import TokenSplit
from tats_fast.models.patchify import normalised_video, patchify
from tats_fast.pretrain.graph import GraphedStep
from tats_fast.pretrain.learner import make_learner
from tats_fast.pretrain.step import StepPlan, pretrain_step
from tats_fast.pretrain.teacher import feature_error, teacher_features
from tats_fast.pretrain.trainer import Trainer
from tats_fast.weights_file import read_state

CPU = World(0, 1, torch.device("cpu"))
PLAN = StepPlan(step=0, lr=2**-9, visible=16, warmup=False)  # a rate that fp32 holds exactly


@pytest.fixture
def teacher(tmp_path):
    """A ``VideoMAEModel`` of another width and depth, as Transformers writes it."""
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=8, tubelet_size=2, hidden_size=24,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, use_mean_pooling=False,
    )  # fmt: skip
    model = randomize(VideoMAEModel(config))
    model.save_pretrained(tmp_path / "teacher")
    return model, str(tmp_path / "teacher")


def clips(count=4):
    return torch.randint(0, 256, (count, 8, 32, 32, 3), dtype=torch.uint8)


def learner_for(tiny_config, path, **sections):
    given = {"init_from": path, **sections.pop("teacher", {})}
    train = {"batch_size": 4, "steps": 4, **sections.pop("train", {})}
    return make_learner(tiny_config(teacher=given, train=train, **sections), CPU)


def test_targets_are_what_transformers_says(tiny_config, teacher):
    theirs, path = teacher
    learner = learner_for(tiny_config, path)
    batch = clips()
    with torch.no_grad():
        expected = theirs(normalised_video(batch).transpose(1, 2)).last_hidden_state
    features = teacher_features(learner.teacher, patchify(batch, 2, 8))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    order = torch.rand(4, 64).argsort(dim=1)
    split = TokenSplit(order=order, count=16, length=64)
    prediction = torch.randn(4, 48, 24)
    found = feature_error(prediction, features, split)
    for clip in range(4):
        for place in (0, 47):
            target = layer_norm(expected[clip, order[clip, 16 + place]], (24,))
            error = (prediction[clip, place] - target).square().mean()
            torch.testing.assert_close(found[clip, place], error, rtol=1e-4, atol=1e-5)
    zero = feature_error(torch.zeros_like(prediction), features, split)
    assert zero.mean().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"masking": {"ratio": 0.75, "draws_per_clip": 2}, "ppo": {"reward": "change_error"}},
        {"masking": {"ratio": 0.75, "budget": "adaptive"}},
        {"masking": {"ratio": 0.75, "strategy": "random"}, "teacher": {"pixels": 0.0}},
    ],
    ids=["plain", "draws", "adaptive", "features alone"],
)
def test_a_step_learns_from_features(tiny_config, teacher, sections):
    """Nothing waits, every parameter moves, the teacher does not."""
    learner = learner_for(tiny_config, teacher[1], **sections)
    frozen = {name: tensor.clone() for name, tensor in learner.teacher.state_dict().items()}
    first = {n: p.detach().clone() for n, p in learner.runner.module.named_parameters()}
    batch = clips()
    metrics = [pretrain_step(learner, [batch], PLAN)]
    with RefuseToWait():
        metrics += [pretrain_step(learner, [batch], PLAN) for _ in range(3)]
    assert metrics[-1]["loss_teacher"] < metrics[0]["loss_teacher"]
    alone = sections.get("teacher", {}).get("pixels") == 0
    assert (metrics[-1]["loss_recon"] < metrics[0]["loss_recon"]) or alone
    assert_identical(dict(learner.teacher.state_dict()), frozen)
    for name, value in learner.runner.module.named_parameters():
        if not (alone and name.startswith(("mae.head", "mae.decoder_norm"))):
            assert not torch.equal(value, first[name]), name


def test_the_reward_is_the_error_of_the_same_target(tiny_config, teacher):
    """What the sampler's scale has seen is the mean of the weighted sum."""
    weighed = {"weight": 0.5, "pixels": 2.0}
    learner = learner_for(tiny_config, teacher[1], teacher=weighed)
    metrics = pretrain_step(learner, [clips()], PLAN)
    expected = 2 * metrics["loss_recon"] + 0.5 * metrics["loss_teacher"]
    torch.testing.assert_close(learner.reward_scale.mean, expected)


def test_static_step_is_the_step(tiny_config, teacher):
    results = []
    for graphed in (False, True):
        learner = learner_for(tiny_config, teacher[1])
        step = GraphedStep(learner, capture=False) if graphed else partial(pretrain_step, learner)
        torch.manual_seed(1)
        results.append(([step([clips()], PLAN) for _ in range(2)], learner.model_state()))
    assert_identical(*results)


def test_a_run_resumes_bit_by_bit(run_config, tmp_path, teacher):
    given = {"init_from": teacher[1]}
    Trainer(run_config("whole", teacher=given), CPU).run()
    Trainer(run_config("parts", teacher=given), CPU).run()
    folder = tmp_path / "parts" / "checkpoints" / "step_000002"
    Trainer(run_config("parts", teacher=given, train={"resume": str(folder)}), CPU).run()
    assert_identical(weights(tmp_path / "parts", 6), weights(tmp_path / "whole", 6))
    with pytest.raises(ConfigError, match=r"teacher\.init_from=None: the checkpoint"):
        Trainer(run_config("parts"), CPU)
    assert tats_fast.load_encoder(tmp_path / "parts").config.width == TINY_MODEL["width"]


def started_from(folder, run_config, caplog, path, **sections):
    """The feature head of a run that starts from ``folder``, and what the run says to that."""
    train = {"init_from": str(folder)}
    config = run_config("next", teacher={"init_from": path}, train=train, **sections)
    caplog.clear()
    with caplog.at_level(logging.INFO, "tats_fast"):
        head = make_learner(config, CPU).runner.module.feature_head
    (said,) = (r.getMessage() for r in caplog.records if "train.init_from=" in r.getMessage())
    return head.state_dict(), said


@pytest.fixture
def begun(run_config, tmp_path, teacher):
    """A run that has learned from the teacher."""
    Trainer(run_config("begun", teacher={"init_from": teacher[1]}), CPU).run()
    return tmp_path / "begun"


def test_a_run_gives_its_feature_head(begun, run_config, caplog, teacher):
    state, said = started_from(begun, run_config, caplog, teacher[1])
    learned = read_state(begun / "checkpoints" / "step_000006" / "model.safetensors")
    assert_identical(dict(state), learned["feature_head"])
    assert "took the encoder, the decoder, the sampler and the feature head, of" in said


def test_a_feature_head_of_something_else_starts_afresh(
    begun, run_config, tmp_path, caplog, teacher
):
    def not_taken(folder, path, **sections):
        state, said = started_from(folder, run_config, caplog, path, **sections)
        assert state["1.bias"].abs().max() == 0, "a fresh head has no bias"
        return said.partition("no feature head ")[2].split(", of ")[0]

    path, other = teacher[1], tmp_path / "other"
    shutil.copytree(path, other)
    assert not_taken(begun, str(other)) == f"(teacher.init_from is {path} there, {other} here)"
    assert not_taken(begun, path, model={"decoder_depth": 2}) == "(it was another decoder's)"
    Trainer(run_config("without"), CPU).run()
    for model in ({}, {"decoder_depth": 2}):
        assert not_taken(tmp_path / "without", path, model=model) == "(not in it)"
    shutil.rmtree(path)
    write_run(Path(path), tats_fast.create_model("vit_tiny", **TINY_MODEL))
    assert not_taken(begun, path) == "(the teacher's width is 24 there, 32 here)"


def test_a_teacher_with_other_tokens_is_refused(tiny_config, tmp_path):
    other = tats_fast.create_model("vit_tiny", **{**TINY_MODEL, "patch_size": 16})
    write_run(tmp_path / "other", other)
    with pytest.raises(ConfigError, match=r"model\.patch_size=8: teacher\.init_from=.* has 16"):
        learner_for(tiny_config, str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"teacher\.init_from=nowhere: neither"):
        learner_for(tiny_config, "nowhere")
    with pytest.raises(ConfigError, match=r"teacher\.weight=2\.0: has no meaning without"):
        tiny_config(teacher={"weight": 2.0})


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "stage"), [("torchrun", 0), ("deepspeed", 2)])
def test_two_processes_train_as_one(run_config, tmp_path, teacher, launcher, stage):
    for name in ("one", "two"):
        config = run_config(name, teacher={"init_from": teacher[1]}, train={"steps": 4})
        save_config(config, tmp_path / f"{name}.yaml")
    finish(start(tmp_path / "one.yaml"), seconds=400)
    finish(start(tmp_path / "two.yaml", f"distributed.zero_stage={stage}", launcher=launcher), 400)
    one, two = (
        read_state(tmp_path / name / "checkpoints" / "step_000004" / "model.safetensors")
        for name in ("one", "two")
    )
    for part in ("mae", "feature_head"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-2, atol=1e-3, msg=name)
