"""A checkpoint that was damaged is named in one sentence, whichever of its files it is."""

from __future__ import annotations

import shutil

import pytest
import torch

from tats_fast.config import ConfigError
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer
from tats_fast.run_folder import read_tensors
from tats_fast.weights_file import read_state, write_state

CPU = World(0, 1, torch.device("cpu"))


class Code:
    """What must not be read: unpickling it would run a function."""

    def __reduce__(self):
        return print, ("executed",)


def truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file):
    file.write_bytes(b"")


def without_a_key(file):
    content = (read_state if file.suffix == ".safetensors" else read_tensors)(file)
    content.pop(next(iter(content)))
    save(content, file)


def save(content, file):
    write = write_state if file.suffix == ".safetensors" else torch.save
    write(content, file)


DAMAGES = {
    "truncated": truncated,
    "empty": emptied,
    "missing": lambda file: file.unlink(),
    "code": lambda file: torch.save(Code(), file),
    "list": lambda file: torch.save([1, 2], file),
    "number": lambda file: save({"mae": 1, "state": 1, "engine": 1}, file),
    "lacks a key": without_a_key,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "optimizer.pt"])
def test_each_file(name, damage, run_config, tmp_path, checkpoint, capsys):
    trained = checkpoint / "run"
    if not trained.exists():
        Trainer(run_config(train={"steps": 2, "checkpoint_every": 2}), CPU).run()
        shutil.copytree(tmp_path / "run", trained)
    else:
        shutil.copytree(trained, tmp_path / "run")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    DAMAGES[damage](folder / name)
    with pytest.raises(ConfigError) as raised:
        Trainer(run_config(train={"steps": 4, "checkpoint_every": 2}), CPU)
    message = str(raised.value)
    assert "\n" not in message and ("checkpoint" in message or "train.resume" in message)
    assert "executed" not in capsys.readouterr().out
    assert folder.exists()  # nothing is lost
