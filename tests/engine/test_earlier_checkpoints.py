"""Checkpoints of before weights were safetensors still load, everywhere."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from models_exchanged import randomize
from project import TINY_MODEL
from run_checks import as_of_earlier_version, assert_identical, weights

import tats_fast
from tats_fast.cli import main
from tats_fast.config import ConfigError
from tats_fast.engine.distributed import World
from tats_fast.engine.resume import checkpoint_to_resume
from tats_fast.interchange import Weights, read_weights, save_weights
from tats_fast.models.restore import load_models
from tats_fast.pretrain.trainer import Trainer
from tats_fast.run_folder import damage, list_checkpoints, model_file
from tats_fast.weights_file import read_state

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def trained(run_config, tmp_path):
    """A run of six steps with a sampler and an average, and the same with files as they were."""
    config = run_config(train={"ema_decay": 0.75})
    Trainer(config, CPU).run()
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    for folder in list_checkpoints(tmp_path / "before"):
        as_of_earlier_version(folder)
        assert not list(folder.glob("*.safetensors")) and damage(folder) is None
    return tmp_path / "run", tmp_path / "before"


def test_training_goes_on_bit_for_bit_and_saves_as_it_does_now(run_config, trained, tmp_path):
    expected = weights(trained[0], 6)
    shutil.rmtree(trained[1] / "checkpoints" / "step_000006")
    Trainer(run_config("before", train={"ema_decay": 0.75}), CPU).run()
    assert_identical(weights(trained[1], 6), expected)


def test_every_reader_sees_the_same(trained, tmp_path):
    run, before = trained
    one, two = load_models(run), load_models(before)
    for model, same in zip(one[1:], two[1:], strict=True):
        assert_identical(dict(model.state_dict()), dict(same.state_dict()))
    for ema in (False, True):
        assert_identical(read_weights(before, ema=ema).state, read_weights(run, ema=ema).state)
        tats_fast.load_encoder(before, ema=ema)
    checkpoint = list_checkpoints(before)[-1]
    assert_identical(read_weights(checkpoint / "model.pt").state, read_weights(run).state)


@pytest.mark.parametrize("how", ["cut", "bit"])
def test_damage_is_noticed(trained, how):
    *_, good, last = list_checkpoints(trained[1])
    content = bytearray((last / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (last / "model.pt").write_bytes(content[: len(content) // 2] if how == "cut" else content)
    assert checkpoint_to_resume(trained[1], "auto", CPU) == good
    with pytest.raises(ConfigError, match="damaged"):
        load_models(trained[1])


def test_where_both_files_are_the_new_one_counts(trained):
    run, before = (list_checkpoints(folder)[-1] for folder in trained)
    assert model_file(before).name == "model.pt"
    shutil.copy(run / "model.safetensors", before)
    assert model_file(before).name == "model.safetensors"
    (before / "model.safetensors").unlink()
    (before / "model.pt").unlink()
    assert model_file(before).name == "model.safetensors"
    with pytest.raises(ConfigError, match=r"neither a checkpoint folder .*model\.safetensors"):
        load_models(before.parent.parent.parent / "nothing")


def test_commands_take_them(trained, tmp_path, demo_clips):
    run, before = trained
    shutil.rmtree(run)
    checkpoint, features = ("--checkpoint", str(before)), str(tmp_path / "features")
    clip = next(demo_clips.glob("*.mp4"))
    (tmp_path / "list.txt").write_text(f"{clip}\n")
    for command in (
        ("import", "--from", str(before), "--out", str(tmp_path / "imported")),
        ("visualize", *checkpoint, "--video", str(clip), "--out", str(tmp_path / "page")),
        ("extract-features", *checkpoint, "--videos", f"{tmp_path}/list.txt", "--out", features),
    ):
        assert main(list(command)) == 0, command
    assert (tmp_path / "imported" / "model.safetensors").is_file()


def test_an_imported_file_of_before(tmp_path):
    """As ``tats-fast import --out imported.pt`` wrote it."""
    model = randomize(tats_fast.create_model(**TINY_MODEL))
    weights = Weights(model=model.config, state=dict(model.state_dict()), source="elsewhere")
    new = save_weights(weights, tmp_path / "imported.safetensors")
    torch.save(copy.deepcopy(read_state(new)), tmp_path / "imported.pt")
    for path in (new, tmp_path / "imported.pt"):
        again = read_weights(path)
        assert (again.model, again.source) == (model.config, "elsewhere")
        assert_identical(again.state, weights.state)
