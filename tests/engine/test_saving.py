"""tats_fast/engine/saving.py: a checkpoint is written while the run trains on."""

from __future__ import annotations

import threading

import pytest
import torch
from run_checks import assert_identical

from tats_fast.engine import store
from tats_fast.engine.distributed import World
from tats_fast.pretrain.trainer import Trainer
from tats_fast.run_folder import damage, list_checkpoints
from tats_fast.weights_file import read_state

CPU = World(0, 1, torch.device("cpu"))


def test_training_goes_on_meanwhile_and_the_checkpoint_is_of_its_step(
    run_config, tmp_path, monkeypatch
):
    """Step 2 is not written to the end before step 4 is trained, and holds step 2's weights."""
    trainer = Trainer(run_config(train={"checkpoint_every": 2, "steps": 5}), CPU)
    trained_on, weights = threading.Event(), {}
    seal, step = store.seal, trainer.train_step

    def slow_seal(folder):
        assert trained_on.wait(timeout=60)
        seal(folder)

    def watched_step(batches):
        done = trainer.position.step
        weights[done] = {k: v.clone() for k, v in trainer.learner.mae.state_dict().items()}
        if done == 3:
            trained_on.set()
        return step(batches)

    monkeypatch.setattr(store, "seal", slow_seal)
    monkeypatch.setattr(trainer, "train_step", watched_step)
    trainer.run()
    first, *_, last = list_checkpoints(tmp_path / "run")
    assert (first.name, last.name) == ("step_000002", "step_000005")
    assert_identical(read_state(first / "model.safetensors")["mae"], weights[2])
    assert not torch.equal(*(weights[n]["encoder.embed.proj.weight"] for n in (2, 3)))
    assert all(damage(folder) is None for folder in (first, last))


def test_an_error_that_is_no_full_disk_ends_the_run(run_config, monkeypatch):
    def broken(folder):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(store, "seal", broken)
    with pytest.raises(KeyError, match="a mistake of ours"):
        Trainer(run_config(), CPU).run()
