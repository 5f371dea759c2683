"""``train.init_from``: what a run takes from another, and what a cool-down needs."""

from __future__ import annotations

import logging

import pytest
import torch
from models_exchanged import randomize, write_run
from project import ROOT, TINY_MODEL
from run_checks import assert_identical
from run_processes import finish, start

import tats_fast
from tats_fast.cli import main
from tats_fast.config import load_config, save_config
from tats_fast.config.reading import build_model_config
from tats_fast.engine.distributed import World
from tats_fast.models.sampler import resized_positions
from tats_fast.pretrain.trainer import Trainer
from tats_fast.weights_file import read_state

CPU = World(0, 1, torch.device("cpu"))
SLOW = {"base_lr": 1e-6, "warmup_frac": 0.0}


@pytest.fixture
def source(run_config, tmp_path):
    """A run that has learned something, sampler included."""
    config = run_config("source", sampler={"warmup_frac": 0.0})
    run = Trainer(config, CPU)
    run.run()
    with torch.no_grad():
        run.learner.sampler.positions.normal_()
    return run.learner, tmp_path / "source"


def started(run_config, folder, caplog, **sections):
    train = {"init_from": str(folder), **sections.pop("train", {})}
    with caplog.at_level(logging.INFO, "tats_fast"):
        learner = Trainer(run_config("next", train=train, **sections), CPU).learner
    said = [r.getMessage() for r in caplog.records if "train.init_from=" in r.getMessage()]
    assert len(said) == 1
    return learner, said[0]


def test_a_run_gives_encoder_decoder_and_sampler(run_config, source, caplog):
    made, folder = source
    learner, said = started(run_config, folder, caplog)
    assert_identical(dict(learner.mae.state_dict()), dict(made.mae.state_dict()))
    state = read_state(folder / "checkpoints" / "step_000006" / "model.safetensors")["sampler"]
    assert_identical(dict(learner.sampler.state_dict()), dict(state))
    assert said.endswith("took the encoder, the decoder and the sampler, of TATS-Fast")


def test_an_exported_folder_gives_encoder_and_decoder(run_config, source, caplog, tmp_path):
    made, folder = source
    out = tmp_path / "out"
    assert main(["export", f"--checkpoint={folder}", "--to=huggingface", f"--out={out}"]) == 0
    learner, said = started(run_config, out, caplog)
    assert_identical(dict(learner.mae.state_dict()), dict(made.mae.state_dict()))
    assert "took the encoder and the decoder, but no sampler (not in it), of Transformers" in said


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"ppo": {"reward": "change_error"}}, "ppo.reward is sparse_change there, change_error"),
        ({"sampler": {"attention": "joint"}}, "sampler.attention is trajectory there, joint here"),
        ({"masking": {"ratio": 0.75, "strategy": "adamae"}}, "masking.strategy is tats there, "),
    ],
)
def test_a_sampler_that_learned_something_else_starts_afresh(
    run_config, source, caplog, sections, said
):
    made, folder = source
    learner, line = started(run_config, folder, caplog, **sections)
    assert f"the decoder, but no sampler ({said}" in line
    assert_identical(dict(learner.mae.state_dict()), dict(made.mae.state_dict()))
    assert learner.sampler.positions.abs().max() == 0


def test_a_sampler_without_a_reward_is_kept_whatever_the_reward(run_config, caplog, tmp_path):
    """An AdaMAE run of before the reward had another default."""
    adamae = {"masking": {"ratio": 0.75, "strategy": "adamae"}}
    Trainer(run_config("source", ppo={"reward": "error"}, **adamae), CPU).run()
    _, said = started(run_config, tmp_path / "source", caplog, **adamae)
    assert said.endswith("took the encoder, the decoder and the sampler, of TATS-Fast")


def test_a_decoder_of_another_size_starts_afresh(run_config, source, caplog):
    made, folder = source
    model = {"decoder_heads": 1, "decoder_depth": 2}
    learner, said = started(run_config, folder, caplog, model=model)
    sizes = "model.decoder_depth is 1 there, 2 here, model.decoder_heads is 2 there, 1 here"
    assert f"took the encoder and the sampler, but no decoder ({sizes})" in said
    expected, found = made.mae.encoder.state_dict(), learner.mae.encoder.state_dict()
    assert_identical(dict(found), dict(expected))


def test_an_unlearned_strategy_misses_no_sampler(run_config, source, caplog):
    _, folder = source
    masking = {"ratio": 0.75, "strategy": "random"}
    _, said = started(run_config, folder, caplog, masking=masking)
    assert "took the encoder and the decoder, of" in said


def test_the_average_starts_at_the_weights_given(run_config, source, caplog):
    _, folder = source
    learner, _ = started(run_config, folder, caplog, train={"ema_decay": 0.9})
    assert_identical(learner.average.values, dict(learner.mae.state_dict()))


def test_a_cool_down_goes_on_with_more_frames_and_pixels(run_config, source, caplog, tmp_path):
    """The recipe of docs/method.md: what was learned holds at the other size, and training goes
    on."""
    made, folder = source
    larger = {"num_frames": 12, "image_size": 48}
    optim = {"warmup_frac": 0.0, "min_lr": 0.0}
    learner, said = started(
        run_config, folder, caplog, model=larger, optim=optim, sampler={"warmup_frac": 0.0}
    )
    assert ", of TATS-Fast; from 8 frames of 32 pixels to 12 of 48" in said
    assert_identical(dict(learner.mae.state_dict()), dict(made.mae.state_dict()))
    fresh = tats_fast.create_model("vit_tiny", **{**TINY_MODEL, **larger})
    for table in ("decoder_positions", "encoder.positions"):
        found, expected = (m.get_buffer(table) for m in (learner.mae, fresh))
        assert torch.equal(found, expected), table
    assert len(learner.sampler.positions) == learner.mae.config.num_tokens == 6 * 36
    config = run_config(
        "cooled", model=larger, optim=optim, train={"init_from": str(folder), "steps": 2}
    )
    Trainer(config, CPU).run()
    assert tats_fast.load_encoder(tmp_path / "cooled").config.num_frames == 12
    again = Trainer(config, CPU)  # goes on from itself, without asking where it began
    assert again.finished


def test_learned_positions_are_interpolated():
    """A table that is linear in time, row and column stays that, over the same clip."""
    old, new = (
        build_model_config({**TINY_MODEL, "num_frames": frames, "image_size": size})
        for frames, size in ((8, 32), (16, 64))
    )

    def linear(model):
        frames, side = model.token_frames, model.image_size // model.patch_size
        axes = [(torch.arange(n) + 0.5) / n for n in (frames, side, side)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return grid.flatten(0, 2)

    assert resized_positions(linear(old), old, old) is not None
    assert torch.equal(resized_positions(linear(old), old, old), linear(old))
    found, expected = resized_positions(linear(old), old, new), linear(new)
    inner = ((expected > 0.2) & (expected < 0.8)).all(dim=1)  # beyond the old centres it is flat
    torch.testing.assert_close(found[inner], expected[inner])
    assert inner.sum() > 50 and found.shape == expected.shape


@pytest.mark.slow
def test_zero_trains_on_from_the_weights_given(run_config, tmp_path):
    """ZeRO keeps master weights of its own, which are what it updates."""
    source = randomize(tats_fast.create_model("vit_tiny", **TINY_MODEL))
    write_run(tmp_path / "source", source)
    train = {"init_from": str(tmp_path / "source"), "steps": 1}
    save_config(run_config(train=train, optim=SLOW), tmp_path / "run.yaml")
    run = start(tmp_path / "run.yaml", "distributed.zero_stage=1", launcher="deepspeed")
    finish(run, seconds=400)
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000001"
    saved = read_state(checkpoint / "model.safetensors")["mae"]
    for name, value in source.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-4, msg=name)


def test_the_documented_cool_down_is_a_configuration():
    page = (ROOT / "docs" / "pretraining.md").read_text()
    command = page.split("## A cool-down")[1].split("```")[1].replace("\\\n", " ").split()
    recipe, overrides = command[3], command[4:]
    assert command[:3] == ["tats-fast", "pretrain", "--config"]
    config, before = load_config(recipe, overrides), load_config(recipe, overrides[:1])
    assert config.model.num_tokens == 2 * before.model.num_tokens
    assert config.optim.base_lr < before.optim.base_lr
